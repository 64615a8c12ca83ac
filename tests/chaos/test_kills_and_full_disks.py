"""Killed, or the disk full, at every step at which a file changes; then the same again, in order.

``sweep.py`` says how. The default tests take every so many steps, the nightly ones all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from . import fault_library
from .scoreboard import Recorder

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = {"kill": "killed", "full": "disk full"}
WORDS = {
    "coordinator-run": "a run's coordinator",
    "site-round": "a site's worker",
    "masked-run": "a coordinator, secure aggregation",
    "confirmed-run": "a coordinator, confirm-survivors",
    "masked-site": "a site's worker, secure aggregation",
    "new-study": "coordinator init",
    "study-with-run": "admit, run",
    "new-node": "node init, join",
    "keys-exchanged": "node rotate, revoke",
    "encode": "encode",
    "train": "train",
    "export": "export",
    "privacy-charges": "privacy ledger",
    "plan-decisions": "plan approval",
}


def sweep(
    action: str, fault: str, folder: Path, library: Path, every: int = 1, shift_clock: int = 0
) -> list[dict[str, Any]]:
    """The rows of one sweep."""
    command = [
        sys.executable,
        "-m",
        "tests.chaos.sweep",
        action,
        folder / action,
        "--fault",
        fault,
        "--every",
        str(every),
    ]
    environment = fault_library.environment(library, shift_clock=shift_clock)
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def check(action: str, fault: str, rows: list[dict[str, Any]], chaos: Recorder) -> None:
    scenario = f"{SCENARIOS[fault]}: {WORDS[action]}"
    chaos.sweep(scenario, "at each write", rows)
    found = [f"{row['label']}: {text}" for row in rows for text in row["faults"]]
    assert not found, "\n".join(found)
    assert all(row["lost"] <= 1 for row in rows)
    if fault == "kill":
        assert {row["ended"] for row in rows} == {"killed"}
    else:
        assert "error" in {row["ended"] for row in rows}


@pytest.mark.parametrize("fault", ["kill", "full"])
def test_a_run_goes_on_bit_for_bit_after_at_most_one_lost_round(
    fault: str, tmp_path: Path, faults: Path, chaos: Recorder
) -> None:
    """About a fifteenth of the steps; the weights, the tables and the model card are compared."""
    check("coordinator-run", fault, sweep("coordinator-run", fault, tmp_path, faults, every=14), chaos)


@pytest.mark.parametrize("fault", ["kill", "full"])
def test_no_charge_to_the_privacy_ledger_is_lost_or_made_twice(
    fault: str, tmp_path: Path, faults: Path, chaos: Recorder
) -> None:
    check("privacy-charges", fault, sweep("privacy-charges", fault, tmp_path, faults, every=6), chaos)


def test_a_study_can_be_made_once_the_disk_has_space_again(
    tmp_path: Path, faults: Path, chaos: Recorder
) -> None:
    check("new-study", "full", sweep("new-study", "full", tmp_path, faults, every=9), chaos)


def test_a_hospital_gives_a_reason_and_serves_again(tmp_path: Path, faults: Path, chaos: Recorder) -> None:
    check("site-round", "full", sweep("site-round", "full", tmp_path, faults, every=60), chaos)


@pytest.mark.parametrize("action", ["confirmed-run", "masked-site"])
def test_a_masked_sum_is_that_of_its_sites_whoever_was_killed(
    action: str, tmp_path: Path, faults: Path, chaos: Recorder
) -> None:
    """Every sum is held against the clear mean of the sites it names; see ``masked_actions.py``."""
    check(action, "kill", sweep(action, "kill", tmp_path, faults, every=50), chaos)


# A half-made study or node is refused in words after a kill, so those two are only met by a full disk.
KILLED = [action for action in WORDS if action not in ("new-study", "new-node")]


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("action", KILLED)
def test_killed_at_every_step(action: str, tmp_path: Path, faults: Path, chaos: Recorder) -> None:
    check(action, "kill", sweep(action, "kill", tmp_path, faults), chaos)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("action", WORDS)
def test_a_full_disk_at_every_step(action: str, tmp_path: Path, faults: Path, chaos: Recorder) -> None:
    check(action, "full", sweep(action, "full", tmp_path, faults), chaos)
