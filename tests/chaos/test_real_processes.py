"""Real processes killed in mid-run, and a bad link: the run goes on, or says why it does not.

One federation serves all tests (``conftest.py``). Encoders draw fresh secrets, so no two runs have
equal bits; what is compared are round numbers and events. (Equal bits: ``test_kills_and_full_disks``.)
"""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from ..federation.command_line import until
from .lossy_path import can_be_made
from .real_federation import Hospital, RealFederation, soon
from .scoreboard import Recorder, Timer

pytestmark = [pytest.mark.federated, pytest.mark.nightly, pytest.mark.timeout(1500)]


@pytest.fixture
def long_run(federation: RealFederation, request: pytest.FixtureRequest) -> Iterator[str]:
    """A run that goes on until the test is over, with two of three sites as quorum."""
    name = f"long-{zlib.crc32(request.node.nodeid.encode()):08x}"
    federation.wait_until_online()
    run_id = federation.start_run(name, num_server_rounds=10_000, evaluate=False)
    federation.wait_for(name, "round-finished", 2)
    yield name
    federation.stop(run_id, name)


def rounds_of(federation: RealFederation, run: str) -> list[int]:
    return [event["round"] for event in federation.events(run, "round-finished")]


def answers_of(federation: RealFederation, run: str, site: str) -> int:
    return sum(event["site"] == site for event in federation.events(run, "site-replied"))


Moment = Callable[[RealFederation, str, Hospital], None]


def between_rounds(federation: RealFederation, run: str, hospital: Hospital) -> None:
    seen = len(federation.events(run, "round-finished"))
    assert soon(lambda: len(federation.events(run, "round-finished")) > seen)


def before_the_request(federation: RealFederation, run: str, hospital: Hospital) -> None:
    seen = len(federation.events(run, "round-started"))
    assert soon(lambda: len(federation.events(run, "round-started")) > seen)


def in_its_audit_log(event: str) -> Moment:
    def moment(federation: RealFederation, run: str, hospital: Hospital) -> None:
        seen = hospital.audit_events().count(event)
        assert soon(lambda: hospital.audit_events().count(event) > seen)

    return moment


MOMENTS: dict[str, Moment] = {
    "before the request": before_the_request,
    "while training": in_its_audit_log("request-accepted"),
    "while sending the reply": in_its_audit_log("update-sent"),
    "between rounds": between_rounds,
}


def goes_on_and_takes_it_back(
    federation: RealFederation, run: str, site: str, scenario: str, case: str, chaos: Recorder, kill: int
) -> None:
    """After the kill: the run has lost no round, numbers every one, and the site answers again."""
    with chaos.attempt(scenario, case) as attempt:
        timer, before = Timer(), rounds_of(federation, run)[-1]
        os.kill(kill, signal.SIGKILL)
        answered = answers_of(federation, run, site)
        # One answer may have been under way when the kill came.
        assert until(lambda: answers_of(federation, run, site) > answered + 1, 300.0), federation.events(run)[
            -5:
        ]
        attempt.seconds = timer.seconds
        assert until(lambda: rounds_of(federation, run)[-1] > before + 1)
        finished = rounds_of(federation, run)
        assert finished == list(range(1, len(finished) + 1))
        failed = federation.events(run, "round-failed")
        attempt.rounds_lost = len({event["round"] for event in failed})
        assert attempt.rounds_lost == 0


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_site_worker_is_started_again_and_answers_again(
    moment: str, federation: RealFederation, long_run: str, chaos: Recorder
) -> None:
    hospital = federation.hospitals["anna"]
    MOMENTS[moment](federation, long_run, hospital)
    victim = hospital.worker.process.pid
    goes_on_and_takes_it_back(federation, long_run, "anna", "site worker killed", moment, chaos, victim)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_node_is_admitted_again_and_answers_again(
    moment: str, federation: RealFederation, long_run: str, chaos: Recorder
) -> None:
    """Flower counts a node that said nothing as online for up to a minute; so long it is refused."""
    hospital = federation.hospitals["bern"]
    MOMENTS[moment](federation, long_run, hospital)
    victim = hospital.node.process.pid
    goes_on_and_takes_it_back(federation, long_run, "bern", "node killed", moment, chaos, victim)


def back_at_work(federation: RealFederation, run: str, killed: datetime) -> float:
    """Seconds from the kill to the first round, or the last measurement, that the resumed run finished."""
    events = federation.events(run)
    resumed = max(number for number, event in enumerate(events) if event["event"] == "run-resumed")
    ends = ("round-finished", "evaluation-finished", "run-finished")
    first = next(event for event in events[resumed:] if event["event"] in ends)
    return (datetime.fromisoformat(first["time"].replace("Z", "+00:00")) - killed).total_seconds()


@pytest.mark.parametrize(
    "event", ["run-started", "round-started", "site-replied", "checkpoint-saved", "evaluation-started"]
)
def test_a_killed_server_app_is_resumed(event: str, federation: RealFederation, chaos: Recorder) -> None:
    name, last = f"resumed-after-{event}", 3
    federation.wait_until_online()
    with chaos.attempt("ServerApp killed and resumed", f"after {event}") as attempt:
        federation.start_run(name, num_server_rounds=last)
        wanted = 2 if event in ("round-started", "checkpoint-saved") else 1
        assert soon(lambda: len(federation.events(name, event)) >= wanted), federation.events(name)
        victim = federation.server_app(name)
        assert victim is not None
        killed = datetime.now(UTC)
        victim.kill()
        assert until(lambda: federation.server_app(name) is None)
        started = [entry["round"] for entry in federation.events(name, "round-started")]
        run_id = federation.resume(name)
        assert federation.wait_for_end(run_id).is_completed
        attempt.seconds = back_at_work(federation, name, killed)
        after = federation.events(name, "run-resumed")[-1]["after-round"]
        attempt.rounds_lost = max(started, default=0) - after
        assert attempt.rounds_lost in (0, 1)
        assert sorted({entry["round"] for entry in federation.events(name, "round-finished")} | {after}) in (
            [1, 2, 3],
            [0, 1, 2, 3],
        )
        assert federation.events(name)[-1]["event"] == "run-finished"


def test_a_killed_superlink_is_started_again_and_the_run_resumed(
    federation: RealFederation, chaos: Recorder
) -> None:
    name = "superlink-killed"
    federation.wait_until_online()
    with chaos.attempt("SuperLink killed and restarted", "in mid-run") as attempt:
        federation.start_run(name, num_server_rounds=10_000, evaluate=False)
        federation.wait_for(name, "round-finished", 2)
        killed = datetime.now(UTC)
        os.killpg(federation.coordinator.superlink.pid, signal.SIGKILL)
        federation.restart_superlink()
        assert until(lambda: federation.server_app(name) is None)
        done = federation.events(name, "checkpoint-saved")[-1]["round"]
        started = federation.events(name, "round-started")[-1]["round"]
        federation.wait_until_online("anna", "bern")
        run_id = federation.resume(name, num_server_rounds=done + 2)
        assert federation.wait_for_end(run_id).is_completed
        attempt.seconds = back_at_work(federation, name, killed)
        assert federation.events(name, "run-resumed")[-1]["after-round"] == done
        attempt.rounds_lost = started - done
        assert attempt.rounds_lost in (0, 1)
        assert sorted(set(rounds_of(federation, name))) == list(range(1, done + 3))


BAD_LINKS = {
    "300 ms, 100 kB/s": {"delay": 0.15, "bytes_per_second": 100_000.0},
    "a reset every 2 s": {"resets_every": 2.0},
    "100 ms, 200 kB/s, a reset every 4 s": {
        "delay": 0.05,
        "bytes_per_second": 200_000.0,
        "resets_every": 4.0,
    },
}


@pytest.mark.parametrize("bad", BAD_LINKS)
def test_a_run_completes_over_a_bad_link(bad: str, federation: RealFederation, chaos: Recorder) -> None:
    """All three hospitals are behind it; what a reset costs are repeated rounds, not the run."""
    name = "link-" + "-".join(word.strip(",").replace("/", "-") for word in bad.split())
    federation.wait_until_online()
    links = [hospital.link for hospital in federation.hospitals.values()]
    with chaos.attempt("bad link", bad) as attempt:
        for link in links:
            for key, value in BAD_LINKS[bad].items():
                setattr(link, key, value)
        timer = Timer()
        try:
            run_id = federation.start_run(name, num_server_rounds=3)
            status = federation.wait_for_end(run_id, 600.0)
        finally:
            for link in links:
                link.delay = link.bytes_per_second = link.resets_every = 0.0
        assert status.is_completed, federation.events(name)[-5:]
        assert rounds_of(federation, name) == [1, 2, 3]
        attempt.seconds = timer.seconds
        attempt.rounds_lost = len(federation.events(name, "round-failed"))


@pytest.mark.skipif(
    not can_be_made(), reason="packets are lost on a network interface; making one needs root"
)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.25])
def test_a_run_completes_while_packets_are_lost(
    share: float, federation: RealFederation, chaos: Recorder
) -> None:
    """Real IP packets between all hospitals and the coordinator, lost in both directions."""
    name = f"loss-{share:g}".replace(".", "-")
    with chaos.attempt("packets lost", f"{share:.0%}") as attempt, federation.losing_packets(share) as path:
        federation.wait_until_online()
        timer = Timer()
        run_id = federation.start_run(name, num_server_rounds=3)
        status = federation.wait_for_end(run_id, 600.0)
        assert status.is_completed, federation.events(name)[-5:]
        assert rounds_of(federation, name) == [1, 2, 3]
        assert path.lost > 0.5 * share * (path.lost + path.passed) > 0
        attempt.seconds = timer.seconds
        attempt.rounds_lost = len(federation.events(name, "round-failed"))


def test_a_link_that_falls_silent_is_a_missing_site_and_not_the_end(
    federation: RealFederation, long_run: str, chaos: Recorder
) -> None:
    """The others go on; the node is taken back when the link speaks again."""
    link = federation.hospitals["cork"].link
    with chaos.attempt("bad link", "silent, then back") as attempt:
        link.silent = True
        try:
            # Flower says so itself ("failed") where its heartbeat runs out before the round's deadline.
            gone = ("site-missing", "site-failed")
            assert until(lambda: bool(federation.events(long_run, *gone)), 300.0)
            missing = federation.events(long_run, *gone)[0]
            assert missing["site"] == "cork"
            assert until(lambda: rounds_of(federation, long_run)[-1] > missing["round"])
        finally:
            link.silent = False
        timer, answered = Timer(), answers_of(federation, long_run, "cork")
        assert until(lambda: answers_of(federation, long_run, "cork") > answered, 300.0)
        attempt.seconds, attempt.rounds_lost = timer.seconds, len(federation.events(long_run, "round-failed"))
        finished = rounds_of(federation, long_run)
        assert finished == list(range(1, len(finished) + 1))
