"""Differential privacy as its users meet it: policy files, real hospitals, runs, cards, what is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from federation.accounting import PrivacyEvent, epsilon_of

from .command_line import instahide, window
from .study_in_windows import StudyInWindows, allow, study_in_windows

pytestmark = [pytest.mark.federated, pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLE = ("differential-privacy=example", "encoding=none", "noise-multiplier=3.0", "num-server-rounds=2")
CLIENT = (
    "differential-privacy=client",
    "secure-aggregation=true",
    "max-update-norm=0.5",
    "over-norm=clip",
    "noise-multiplier=4.0",
    "num-server-rounds=2",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyInWindows]:
    with study_in_windows(tmp_path_factory.mktemp("private")) as opened:
        for name in opened.hospitals:
            policy = opened.root / name / "policy.toml"
            allow(policy, "encoding-required = false")
            policy.write_text(policy.read_text() + "\nmax-epsilon = 4.0\n")
        yield opened


def privacy_of(study: StudyInWindows, name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(instahide("node", "privacy", study.root / name, "--format", "json"))
    return report


def test_a_private_run_is_counted_at_every_site_and_the_next_meets_the_cap(
    study: StudyInWindows, tmp_path: Path
) -> None:
    instahide(*study.run("private", *EXAMPLE))
    card = (study.run_folder("private") / "model_card.md").read_text()
    assert "One training image" in card
    assert "| st-mary | not told" in card
    for name in study.hospitals:
        report = privacy_of(study, name)
        assert [run["rounds-charged"] for run in report["runs"]] == [2]
        event = PrivacyEvent(
            run_name="private",
            server_round=1,
            mechanism="dp-sgd",
            noise_multiplier=3.0,
            sample_rate=64 / 120,
            num_steps=2,
            num_draws=2,
        )
        assert report["epsilon-spent"] == pytest.approx(epsilon_of([event] * 2, 1e-5), rel=1e-3)
        assert 0 < report["epsilon-remaining"] < 4.0
    long = (*EXAMPLE[:-1], "num-server-rounds=500", "max-failed-rounds=0")
    with window(tmp_path / "long.log", *study.run("long", *long)) as running:
        assert running.process.wait(300) != 0
    refused = study.events("long", "site-refused")
    assert {event["kind"] for event in refused} == {"budget"}
    assert "a run of 500 rounds would take this site to epsilon" in refused[0]["reason"]
    assert len(privacy_of(study, "st-mary")["runs"]) == 1


def test_whole_sites_are_protected_from_a_coordinator_that_opens_sums_only(study: StudyInWindows) -> None:
    instahide(*study.run("shared", *CLIENT))
    card = " ".join((study.run_folder("shared") / "model_card.md").read_text().split())
    assert "One whole site" in card
    assert "in 2 releases" in card
    assert "protects from the coordinator" in card
    assert all(event["metrics"] == {} for event in study.events("shared", "site-replied"))
