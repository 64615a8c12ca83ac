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

        def without() -> list[int]:
            later = list(enumerate(sums(federation, long_run)))[seen:]
            return [number for number, opened in later if opened["missing"] == ["anna"]]

        def back() -> bool:
            return bool(without()) and any(
                not opened["missing"] for opened in sums(federation, long_run)[without()[0] :]
            )

        assert until(back, 300.0), federation.events(long_run)[-5:]
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


BAD_LINKS = {
    "a reset every 5 s": {"resets_every": 5.0},
    "a changed bit every 5 s": {"changes_every": 5.0},
}


@pytest.mark.parametrize("bad", BAD_LINKS)
def test_a_masked_run_completes_over_a_bad_link(
    bad: str, federation: RealFederation, chaos: Recorder
) -> None:
    """All three hospitals are behind it. A changed bit is found by TLS, which gives up the connection.

    Where the answer to "here is my reply" is lost, the coordinator waits minutes for that reply's content
    (Flower 1.41); the round goes on without it.
    """
    name = "masked-link-" + bad.split()[1]
    federation.wait_until_online()
    links = [hospital.link for hospital in federation.hospitals.values()]
    before = sum(link.changes + link.resets for link in links)
    with chaos.attempt("masked: bad link", bad) as attempt:
        for link in links:
            for key, value in BAD_LINKS[bad].items():
                setattr(link, key, value)
        timer = Timer()
        try:
            run_id = federation.start_run(name, num_server_rounds=3, round_deadline=40.0, **MASKED)
            status = federation.wait_for_end(run_id, 1200.0)
        finally:
            for link in links:
                link.resets_every = link.changes_every = 0.0
        assert status.is_completed, federation.events(name)[-5:]
        assert sum(link.changes + link.resets for link in links) > before
        check_every_sum(federation, name, last=3)
        attempt.seconds = timer.seconds
        attempt.rounds_lost = len(federation.events(name, "round-failed"))
