"""``instahide node privacy``: what a privacy officer reads, and what a program gets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from federation.accounting import PrivacyEvent, epsilon_of
from federation.cli import run
from federation.privacy_ledger import LEDGER_NAME, PrivacyLedger


@pytest.fixture
def node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    rng = np.random.default_rng(0)
    images = tmp_path / "scans.npz"
    np.savez(images, x=rng.integers(0, 256, (80, 8, 8), dtype=np.uint8), y=np.arange(80) % 2)
    folder = tmp_path / "st-mary"
    assert run(["node", "init", str(folder), "--name", "st-mary", "--data", str(images)]) == 0
    capsys.readouterr()
    return folder


def event(run_name: str, server_round: int = 1, noise_multiplier: float = 2.0) -> PrivacyEvent:
    return PrivacyEvent(
        run_name=run_name,
        server_round=server_round,
        mechanism="dp-sgd",
        noise_multiplier=noise_multiplier,
        sample_rate=0.1,
        num_steps=10,
        num_draws=10_000,
    )


def spend(node: Path) -> list[PrivacyEvent]:
    ledger = PrivacyLedger(node / "state" / LEDGER_NAME)
    events = [event("spring", 1), event("spring", 2), event("autumn", 1, 4.0)]
    for one in events:
        ledger.charge(one)
    counts = {"rounds_served": 3, "last_round": 3, "repeats": 0, "evaluations_served": 0}
    runs = {"format-version": 1, "runs": {"spring": counts, "winter": counts}}
    (node / "state" / "runs.json").write_text(json.dumps(runs))
    return events


def facts(node: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert run(["node", "privacy", str(node), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_a_new_site_has_spent_nothing_and_looking_makes_no_file(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = facts(node, capsys)
    assert (found["epsilon-spent"], found["runs"], found["max-epsilon"]) == (0.0, [], None)
    assert not (node / "state" / LEDGER_NAME).exists()


def test_the_total_the_runs_and_what_no_epsilon_covers(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = spend(node)
    found = facts(node, capsys)
    assert found["epsilon-spent"] == pytest.approx(epsilon_of(events, 1e-5))
    runs = found["runs"]
    assert isinstance(runs, list)
    assert [(one["run-name"], one["rounds-charged"], one["steps"]) for one in runs] == [
        ("spring", 2, 20),
        ("autumn", 1, 10),
    ]
    assert runs[0]["epsilon"] == pytest.approx(epsilon_of(events[:2], 1e-5))
    assert found["runs-without-differential-privacy"] == ["winter"]


def test_with_a_cap_it_says_what_is_left(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spend(node)
    with (node / "policy.toml").open("a") as policy:
        policy.write("\nmax-epsilon = 4\n")
    found = facts(node, capsys)
    held, left = found["epsilon-against-cap"], found["epsilon-remaining"]
    assert isinstance(held, float)
    assert isinstance(left, float)
    assert held + left == pytest.approx(4.0)
    assert run(["node", "privacy", str(node)]) == 0
    text = capsys.readouterr().out
    assert "cap: 4" in text
    assert "winter" in text
    assert "one training image" in text


def test_a_damaged_ledger_ends_with_the_code_for_damage(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (node / "state").mkdir()
    (node / "state" / LEDGER_NAME).write_bytes(b"damaged" * 1000)
    assert run(["node", "privacy", str(node)]) == 4
    assert "backup" in capsys.readouterr().err
