"""Something happens to the messages of a run with secure aggregation: the sum is right, or there is none.

Five sites with real sessions, ``confirm-survivors``, a threshold of three. After every run each sum is
held against the clear mean of the sites it names, and no site has given shares for two sets.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from federation.coordinator import rounds
from federation.coordinator.events import read_events
from federation.messages import TRAIN
from instahide.errors import InstaHideError

from ..federation.coordinator import fakes
from ..federation.coordinator.masked_sites import SITES, SIZES, Hospitals, change_of
from .masked_runs import Answers, Clear, revealed, wrong_sums
from .message_faults import FAULTS, KINDS, Network, is_explained, kinds_for
from .scoreboard import Recorder

NODES = {name: node for node, name in SITES.items()}


def clear(site: str, server_round: int) -> Any:
    return change_of(NODES[site], server_round), SIZES[NODES[site]]


def a_run(folder: Path, faults: dict[tuple[int, str], str], seed: int) -> tuple[str, list[str]]:
    """How a run of two rounds ended ("finished" or "aborted"), and what was wrong with it, in words."""
    hospitals, answers = Hospitals(), Answers()
    secure = {"secure_aggregation": True, "confirm_survivors": True, "roster": hospitals.roster}
    least = {"minimum_sites": 3, "reconstruction_threshold": 3, "max_site_examples": 1000}
    config = fakes.prepare(
        folder, SITES, num_server_rounds=2, keep_checkpoints=9, retry_pause=1.0, **secure, **least
    )
    clock = fakes.FakeClock()
    network = Network(hospitals, faults, random.Random(seed), answers.note)
    network.grid = fakes.FakeGrid(clock, network, online=dict.fromkeys(SITES, "first"))
    ended, wrong = "finished", []
    try:
        rounds.run(config, network.grid, clock=clock)
    except InstaHideError as problem:
        ended = "aborted"
        if not is_explained(problem):
            wrong.append(f"an abort without a hint: {problem.message}")
    secrets = {SITES[node]: change_of(node, number).tobytes() for node in SITES for number in (1, 2)}
    return ended, wrong + wrong_sums(folder, clear) + answers.faults + revealed(folder, secrets)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_one_message_costs_no_round_and_spoils_no_sum(
    fault: str, tmp_path: Path, chaos: Recorder
) -> None:
    for number, kind in enumerate(kinds_for(fault)):
        faults = {(list(SITES)[number], kind): fault}
        with chaos.attempt("message of a masked round", fault) as attempt:
            assert a_run(tmp_path / kind, faults, seed=number) == ("finished", [])
            assert not faults  # it has come
            events = read_events(tmp_path / kind / "events.jsonl")
            attempt.rounds_lost = sum(event["event"] == "round-failed" for event in events)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(20))
def test_several_faults_end_in_the_right_sum_or_in_none(seed: int, tmp_path: Path, chaos: Recorder) -> None:
    """20 runs a seed, each with two to ten messages that meet a fault."""
    chance = random.Random(seed)
    places = [(node, kind) for node in SITES for kind in KINDS]
    for number in range(20):
        chosen = chance.sample(places, chance.randint(2, 10))
        faults = {place: chance.choice(list(FAULTS)) for place in chosen}
        ended, wrong = a_run(tmp_path / f"run-{number}", dict(faults), seed=chance.randrange(2**32))
        with chaos.attempt("messages of a masked run", f"2 to 10 faults; the run {ended}"):
            assert not wrong, (faults, wrong)


def test_a_round_with_too_few_reports_opens_nothing(tmp_path: Path, chaos: Recorder) -> None:
    """Three of five never report: no attempt gets as far as a request for shares."""
    hospitals, answers = Hospitals(), Answers()

    def silent(node: int, request: Any, reply: Any) -> Any:
        if request.kind == "query.unmask":
            answers.note(node, reply.aggregation_record)
        return None if node in (11, 12, 13) and request.kind == TRAIN else reply

    hospitals.misbehave = silent
    folder = tmp_path / "run"
    config = fakes.prepare(folder, SITES, secure_aggregation=True, roster=hospitals.roster, minimum_sites=3)
    clock = fakes.FakeClock()
    with chaos.attempt("messages of a masked run", "below the threshold"):
        with pytest.raises(InstaHideError) as caught:
            rounds.run(config, fakes.FakeGrid(clock, hospitals, online=dict.fromkeys(SITES, "")), clock=clock)
        assert is_explained(caught.value)
        assert answers.number == 0
        names = {event["event"] for event in read_events(folder / "events.jsonl")}
        assert "sum-opened" not in names


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    assert a_run(tmp_path / "run", {}, seed=0) == ("finished", [])
    return tmp_path / "run"


def test_a_wrong_sum_would_be_seen(finished: Path) -> None:
    """The check itself: it objects to one site more or less, and to a weight off by a thousandth."""

    def one_site_off(site: str, server_round: int) -> Any:
        change, number = clear(site, server_round)
        return change, number + (site == "site-14" and server_round == 2)

    def one_weight_off(site: str, server_round: int) -> Any:
        change, number = clear(site, server_round)
        return change + 0.001 * (change == change[3]), number

    checks: list[Clear] = [one_site_off, one_weight_off]
    for check in checks:
        assert wrong_sums(finished, check)
