"""Runs with secure aggregation in real processes: killed in the middle of a masked round, and over bad links.

Nobody can look at a real site's update, so a sum is held against what its sites are: its number of images
is summed under the mask, too, and must be that of exactly the sites it names. (The weights themselves
are held against the clear mean in ``masked_actions.py``.)
"""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from ..federation.command_line import until
from .lossy_path import can_be_made
from .real_federation import RealFederation, soon
from .scoreboard import Recorder, Timer
from .test_real_processes import in_its_audit_log, rounds_of

pytestmark = [pytest.mark.federated, pytest.mark.nightly, pytest.mark.timeout(1500)]

MASKED: dict[str, Any] = {"secure_aggregation": True, "reconstruction_threshold": 2, "evaluate": False}


@pytest.fixture
def long_run(federation: RealFederation, request: pytest.FixtureRequest) -> Iterator[str]:
    """A masked run that goes on until the test is over; any two of three sites open a sum."""
    name = f"masked-{zlib.crc32(request.node.nodeid.encode()):08x}"
    federation.wait_until_online()
    run_id = federation.start_run(name, num_server_rounds=10_000, **MASKED)
    federation.wait_for(name, "round-finished", 2)
    yield name
    federation.stop(run_id, name)


def sums(federation: RealFederation, run: str) -> list[dict[str, Any]]:
    return federation.events(run, "sum-opened")


def check_every_sum(federation: RealFederation, run: str, last: int | None = None) -> None:
    """Each round has its sum, over two sites at least, which counts the images of those sites."""
    sizes = {site.name: site.num_examples for site in federation.study.sites()}
    finished = federation.events(run, "round-finished")
    for event in finished:
        assert event["metrics"]["num-examples"] == sum(sizes[site] for site in event["sites"])
        assert len(event["sites"]) >= 2
    numbers = [event["round"] for event in finished]
    assert numbers == list(range(1, (last or len(numbers)) + 1))


def is_back(federation: RealFederation, run: str, site: str, seen: int) -> bool:
    """Whether, after the first ``seen`` sums, one came without the site and a later one with all."""
    missing = [opened["missing"] for opened in sums(federation, run)[seen:]]
    return [site] in missing and [] in missing[missing.index([site]) :]


@pytest.mark.parametrize(
    ("moment", "event"),
    [
        ("while masking", "request-accepted"),
        ("after its report", "update-sent"),
        ("after its shares", "shares-given"),
    ],
)
def test_a_worker_killed_in_a_masked_round_is_back_in_a_later_sum(
    moment: str, event: str, federation: RealFederation, long_run: str, chaos: Recorder
) -> None:
    hospital = federation.hospitals["anna"]
    in_its_audit_log(event)(federation, long_run, hospital)
    with chaos.attempt("masked: site worker killed", moment) as attempt:
        timer, seen = Timer(), len(sums(federation, long_run))
        os.kill(hospital.worker.process.pid, signal.SIGKILL)
        assert until(lambda: is_back(federation, long_run, "anna", seen), 300.0)
        attempt.seconds = timer.seconds
        attempt.rounds_lost = len(federation.events(long_run, "round-failed"))
        assert attempt.rounds_lost == 0
        check_every_sum(federation, long_run)


@pytest.mark.parametrize(("event", "wanted"), [("session-opened", 1), ("site-replied", 5), ("sum-opened", 2)])
def test_a_masked_run_is_resumed_with_sites_that_were_left_in_a_session(
    event: str, wanted: int, federation: RealFederation, chaos: Recorder
) -> None:
    name, last = f"masked-after-{event}", 3
    federation.wait_until_online()
    with chaos.attempt("masked: ServerApp killed and resumed", f"after {event}") as attempt:
        federation.start_run(name, num_server_rounds=last, confirm_survivors=True, **MASKED)
        assert soon(lambda: len(federation.events(name, event)) >= wanted), federation.events(name)
        victim = federation.server_app(name)
        assert victim is not None
        victim.kill()
        timer = Timer()
        assert until(lambda: federation.server_app(name) is None)
        started = [entry["round"] for entry in federation.events(name, "round-started")]
        run_id = federation.resume(name)
        assert federation.wait_for_end(run_id).is_completed, federation.events(name)[-5:]
        attempt.seconds = timer.seconds
        after = federation.events(name, "run-resumed")[-1]["after-round"]
        attempt.rounds_lost = max(started, default=0) - after
        assert attempt.rounds_lost in (0, 1)
        assert sorted({*rounds_of(federation, name), after} - {0}) == [1, 2, 3]
        assert federation.events(name)[-1]["event"] == "run-finished"


def test_a_masked_run_completes_over_links_that_break(federation: RealFederation, chaos: Recorder) -> None:
    """All three hospitals are behind one; whoever is lost in a round is back in the next session."""
    name = "masked-link-resets"
    federation.wait_until_online()
    links = [hospital.link for hospital in federation.hospitals.values()]
    before = sum(link.resets for link in links)
    with chaos.attempt("masked: bad link", "a reset every 5 s") as attempt:
        for link in links:
            link.resets_every = 5.0
        timer = Timer()
        try:
            run_id = federation.start_run(name, num_server_rounds=10, round_deadline=40.0, **MASKED)
            status = federation.wait_for_end(run_id, 900.0)
        finally:
            for link in links:
                link.resets_every = 0.0
        assert status.is_completed, federation.events(name)[-5:]
        assert sum(link.resets for link in links) > before
        check_every_sum(federation, name, last=10)
        attempt.seconds = timer.seconds
        attempt.rounds_lost = len(federation.events(name, "round-failed"))


@pytest.mark.skipif(
    not can_be_made(), reason="packets are lost on a network interface; making one needs root"
)
def test_a_masked_run_completes_while_packets_are_lost(federation: RealFederation, chaos: Recorder) -> None:
    """Every sum is right, whoever was late for it."""
    name = "masked-loss"
    with chaos.attempt("masked: packets lost", "10%") as attempt, federation.losing_packets(0.1) as path:
        federation.wait_until_online()
        timer = Timer()
        run_id = federation.start_run(name, num_server_rounds=5, round_deadline=60.0, **MASKED)
        status = federation.wait_for_end(run_id, 900.0)
        assert status.is_completed, federation.events(name)[-5:]
        assert path.lost > 0
        check_every_sum(federation, name, last=5)
        attempt.seconds = timer.seconds
        attempt.rounds_lost = len(federation.events(name, "round-failed"))


def test_a_changed_bit_costs_a_connection_and_reaches_no_sum(
    federation: RealFederation, long_run: str, chaos: Recorder
) -> None:
    """TLS finds it and gives the connection up. The node tries again, or ends at it and is started again."""
    link = federation.hospitals["cork"].link
    for _ in range(3):
        with chaos.attempt("masked: bad link", "a changed bit") as attempt:
            timer, seen = Timer(), len(sums(federation, long_run))
            link.change_next = True
            assert until(lambda: not link.change_next)

            def serves_on(seen: int = seen) -> bool:
                return any("cork" in opened["sites"] for opened in sums(federation, long_run)[seen + 2 :])

            assert until(serves_on, 300.0)
            attempt.seconds = timer.seconds
            attempt.rounds_lost = len(federation.events(long_run, "round-failed"))
            assert attempt.rounds_lost == 0
            check_every_sum(federation, long_run)
