"""A run whose plan some sites have not approved yet: the first round waits for the people there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from coordinator_fakes import FakeClock, FakeGrid, honest, prepare, refuse

from federation.commands.console import describe_event
from federation.config import RunConfig
from federation.coordinator import rounds
from federation.coordinator.events import read_events
from federation.messages import TRAIN, RoundRequest
from instahide.errors import FederationError

ANNA, BERN, CORK = 11, 12, 13
WAITS = refuse("the plan 3f2a91c07b1d waits for this site's approval", kind="approval")


class Sites:
    """Sites that refuse until their people approve at a given second; None: never."""

    def __init__(self, clock: FakeClock, approved_at: dict[int, float | None]) -> None:
        self.clock, self.approved_at = clock, approved_at

    def __call__(self, node: int, request: RoundRequest) -> Any:
        at = self.approved_at.get(node, 0.0)
        return honest(node, request) if at is not None and self.clock.now >= at else WAITS


def run(config: RunConfig, approved_at: dict[int, float | None]) -> tuple[FakeGrid, list[dict[str, Any]]]:
    clock = FakeClock()
    grid = FakeGrid(clock, behaviour=Sites(clock, approved_at))
    try:
        rounds.run(config, grid, clock=clock)
    finally:
        grid.seconds = clock.now  # type: ignore[attr-defined]
    return grid, read_events(Path(config.run_directory) / "events.jsonl")


def of(events: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] in kinds]


def test_a_round_waits_for_approval_and_counts_no_failed_attempt(tmp_path: Path) -> None:
    config = prepare(tmp_path, start_deadline=3600.0, max_failed_rounds=0, num_server_rounds=2)
    _, events = run(config, {ANNA: 1000.0, BERN: 2000.0, CORK: None})
    assert of(events, "run-finished")
    assert not of(events, "round-failed")
    first, second = (set(event["sites"]) for event in of(events, "round-finished"))
    assert first == second == {"Anna", "Bern"}
    waiting = of(events, "waiting-for-approval")
    assert [event["sites"] for event in waiting] == [["Anna", "Bern", "Cork"], ["Bern", "Cork"]]
    said = describe_event(waiting[-1])
    assert said is not None
    assert "Bern, Cork" in said
    assert "instahide node plan" in said


def test_a_quick_refusal_does_not_end_the_wait_for_a_slow_one_and_is_told_once(tmp_path: Path) -> None:
    """Two sites make the quorum; their refusals arrive seconds apart, and again each time they are asked."""
    config = prepare(tmp_path, {ANNA: "Anna", BERN: "Bern"}, start_deadline=3600.0, num_server_rounds=1)
    clock = FakeClock()
    sites = Sites(clock, {ANNA: 900.0, BERN: 900.0})

    def behaviour(node: int, request: RoundRequest) -> Any:
        return 7.0 if node == BERN else 0.01, sites(node, request)

    grid = FakeGrid(clock, behaviour=behaviour, online={ANNA: "first", BERN: "first"})
    rounds.run(config, grid, clock=clock)
    events = read_events(tmp_path / "events.jsonl")
    [waiting] = of(events, "waiting-for-approval")
    assert waiting["sites"] == ["Anna", "Bern"]
    assert [event["site"] for event in of(events, "site-refused")] == ["Anna", "Bern"]
    assert len(grid.asked(ANNA)) > 2


def test_who_has_given_a_good_update_is_not_asked_again_while_others_decide(tmp_path: Path) -> None:
    config = prepare(tmp_path, minimum_sites=3, start_deadline=3600.0, num_server_rounds=1)
    grid, _ = run(config, {CORK: 1500.0})
    assert grid.asked(ANNA) == grid.asked(BERN) == [1]
    assert len(grid.asked(CORK)) > 2


def test_sites_that_decide_late_are_asked_ever_more_rarely(tmp_path: Path) -> None:
    """Pauses of 5 s at first, then a quarter of the time waited, at most a minute."""
    config = prepare(tmp_path, start_deadline=36_000.0, num_server_rounds=1)
    grid, _ = run(config, dict.fromkeys((ANNA, BERN, CORK), 35_000.0))
    assert len(grid.asked(ANNA)) < 35_000 / 60 + 30


def test_when_nobody_decides_in_time_the_run_fails_with_the_sites_own_words(tmp_path: Path) -> None:
    config = prepare(tmp_path, start_deadline=600.0, max_failed_rounds=0)
    with pytest.raises(FederationError, match="waits for this site's approval") as caught:
        run(config, dict.fromkeys((ANNA, BERN, CORK)))
    assert "Anna: the plan 3f2a91c07b1d" in caught.value.message


def test_nobody_is_waited_for_when_the_quorum_cannot_be_met_anyway(tmp_path: Path) -> None:
    config = prepare(tmp_path, minimum_sites=3, start_deadline=36_000.0, max_failed_rounds=0)
    clock = FakeClock()

    def behaviour(node: int, request: RoundRequest) -> Any:
        return WAITS if node == ANNA else refuse("no", kind="policy")

    with pytest.raises(FederationError):
        rounds.run(config, FakeGrid(clock, behaviour=behaviour), clock=clock)
    assert clock.now < 60


def test_approved_sites_go_on_without_those_that_have_not_decided(tmp_path: Path) -> None:
    config = prepare(tmp_path, num_server_rounds=3)
    grid, events = run(config, {CORK: None})
    assert not of(events, "waiting-for-approval")
    assert len(of(events, "round-finished")) == 3
    asked = [request for _, node, request in grid.sent if node == CORK and request.kind == TRAIN]
    assert len(asked) == 3  # it may approve between two rounds
