"""A site revoked while a run is under way: asked no more, not counted, in no sum; the others go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_fakes import NAMES, FakeClock, FakeGrid, honest, prepare

from federation.audit_verification import read_log
from federation.coordinator import rounds
from federation.coordinator.events import read_events
from federation.coordinator.revocations import Revocation
from federation.hidden_sum import to_vector
from federation.identity import create_identity
from federation.messages import SESSION, TRAIN, UNMASK
from instahide.errors import FederationError

from .masked_sites import SITES, Hospitals
from .test_masked_collection import expected_mean, prepare_weights

ANNA, BERN, CORK = NAMES


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with a coordinator's identity key, where the list of refused keys is looked for."""
    folder = tmp_path / "study"
    folder.mkdir()
    create_identity(folder / "identity.key")
    return folder


def revoke(study: Path, *nodes: int) -> None:
    rows = [
        Revocation(node_id=node, name="x", node_key=f"SHA256:{node}", identity_key="", time="").to_mapping()
        for node in nodes
    ]
    (study / "revoked.json").write_text(json.dumps(rows))


def a_run(folder: Path, study: Path, **options: Any) -> tuple[Any, FakeGrid]:
    settings = {"num_server_rounds": 3, "retry_pause": 1.0} | options.pop("settings", {})
    config = prepare(folder, audit_folder=str(study), **settings)
    clock = FakeClock()
    grid = FakeGrid(clock, **options)
    return rounds.run(config, grid, clock=clock), grid


def events(folder: Path, name: str, site: str = "Anna") -> list[dict[str, Any]]:
    lines = read_events(folder / "events.jsonl")
    return [line for line in lines if line["event"] == name and line.get("site") == site]


def test_a_site_revoked_before_the_run_is_never_asked_nor_waited_for(tmp_path: Path, study: Path) -> None:
    revoke(study, ANNA)
    _, grid = a_run(tmp_path / "run", study)
    assert grid.asked(ANNA) == []
    assert grid.asked(BERN) == grid.asked(CORK) == [1, 2, 3]
    assert grid.clock.now < 2.0  # the settle time is for sites that may come


def test_a_site_revoked_between_two_rounds_is_asked_no_more(tmp_path: Path, study: Path) -> None:
    def behave(node: int, request: Any) -> Any:
        if node == CORK and request.server_round == 2:
            revoke(study, ANNA)
        return honest(node, request)

    _, grid = a_run(tmp_path / "run", study, behaviour=behave)
    assert grid.asked(ANNA) == [1, 2]
    assert [event["round"] for event in events(tmp_path / "run", "site-replied")] == [1]
    finished = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["event"] == "round-finished"]
    assert [event["sites"] for event in finished] == [["Anna", "Bern", "Cork"], *[["Bern", "Cork"]] * 2]


@pytest.mark.parametrize("comes", ["after", "before"])
def test_an_answer_does_not_count_whether_it_comes_after_or_came_before(
    comes: str, tmp_path: Path, study: Path
) -> None:
    """Before: it was taken in, and the round still waits for another site."""

    def behave(node: int, request: Any) -> Any:
        delay = {ANNA: 5.0 if comes == "after" else 0.01, CORK: 5.0}.get(node, 0.01)
        return delay, honest(node, request)

    def script(grid: FakeGrid) -> None:
        if grid.clock.now > 1.0:
            revoke(study, ANNA)

    settings = {"num_server_rounds": 1, "evaluate": False}
    result, _ = a_run(tmp_path / "run", study, behaviour=behave, script=script, settings=settings)
    without, _ = a_run(tmp_path / "other", study, settings=settings)  # Anna is revoked from the start
    for name, array in result.weights.items():
        assert array.tobytes() == without.weights[name].tobytes()
    lost = [event for name in ("site-rejected", "site-missing") for event in events(tmp_path / "run", name)]
    assert [event["reason"] for event in lost] == ["its keys were revoked"]


def test_the_run_fails_where_too_few_are_left_and_says_why(tmp_path: Path, study: Path) -> None:
    def behave(node: int, request: Any) -> Any:
        revoke(study, ANNA, BERN)
        return honest(node, request)

    settings = {"minimum_sites": 2, "max_failed_rounds": 0}
    with pytest.raises(FederationError, match=r"Anna: its keys were revoked; Bern: its keys were revoked"):
        a_run(tmp_path / "run", study, behaviour=behave, settings=settings)


def test_a_run_that_waits_in_vain_names_the_revoked(tmp_path: Path, study: Path) -> None:
    revoke(study, ANNA, CORK)
    with pytest.raises(FederationError, match="absent: others; revoked: Anna, Cork"):
        a_run(tmp_path / "run", study)


def test_the_audit_log_shows_that_the_answer_was_not_used(tmp_path: Path, study: Path) -> None:
    def behave(node: int, request: Any) -> Any:
        revoke(study, ANNA)
        return honest(node, request)

    a_run(tmp_path / "run", study, behaviour=behave, settings={"num_server_rounds": 1})
    log = read_log(study / "audit.jsonl")
    assert not log.problems
    rejected = [record.fields for record in log.records if record.event == "site-rejected"]
    assert [(fields["site"], fields["reason"]) for fields in rejected] == [("Anna", "its keys were revoked")]


# --- with secure aggregation ------------------------------------------------------------------------


def a_masked_run(folder: Path, study: Path, hospitals: Hospitals) -> Any:
    config = prepare(
        folder,
        SITES,
        secure_aggregation=True,
        roster=hospitals.roster,
        max_site_examples=1000,
        num_server_rounds=1,
        minimum_sites=3,
        reconstruction_threshold=3,
        retry_pause=1.0,
        evaluate=False,
        audit_folder=str(study),
    )
    clock = FakeClock()
    grid = FakeGrid(clock, hospitals, online=dict.fromkeys(SITES, "first"))
    return rounds.run(config, grid, clock=clock)


@pytest.mark.parametrize("when", [TRAIN, UNMASK])
def test_a_sum_with_a_report_of_a_revoked_site_is_never_opened(
    when: str, tmp_path: Path, study: Path
) -> None:
    """The attempt ends unopened; the next has a session without it, and the mean of the others."""
    hospitals = Hospitals()

    def misbehave(node: int, request: Any, reply: Any) -> Any:
        if node == 15 and request.kind == when:
            revoke(study, 11)
        return (1.0, reply) if node != 11 else reply  # 11's answers are in before the others'

    hospitals.misbehave = misbehave
    result = a_masked_run(tmp_path / "run", study, hospitals)
    wanted = to_vector(prepare_weights()) + expected_mean(1, [12, 13, 14, 15])
    assert np.allclose(to_vector(result.weights), wanted, atol=2e-6)
    lines = read_events(tmp_path / "run" / "events.jsonl")
    opened = [line for line in lines if line["event"] == "sum-opened"]
    assert [line["missing"] for line in opened] == [["site-11"]]
    if when == UNMASK:
        [failed] = [line for line in lines if line["event"] == "round-failed"]
        assert "keys of site-11 were revoked while its report was in the sum" in failed["reason"]


def test_a_revoked_site_of_the_roster_is_in_no_session(tmp_path: Path, study: Path) -> None:
    hospitals = Hospitals()
    revoke(study, 11)
    a_masked_run(tmp_path / "run", study, hospitals)
    assert not [asked for asked in hospitals.asked if asked[0] == 11]
    assert [kind for node, kind, _ in hospitals.asked if node == 12] == [SESSION, TRAIN, UNMASK]
