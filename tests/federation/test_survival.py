"""What is killed, and what then happens: with SIGKILL, in the middle of a run, as a power cut would.

Sites shuffle and encode with the operating system's entropy, so two runs never have equal bits;
what is compared are round numbers and events.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from instahide.errors import FederationError

from .command_line import until, window
from .study_in_windows import StudyInWindows, study_in_windows

pytestmark = [pytest.mark.federated, pytest.mark.timeout(280)]

# Both sites make the quorum in the tests that want every round whole; one is enough elsewhere.
LONG = "num-server-rounds=100"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyInWindows]:
    with study_in_windows(tmp_path_factory.mktemp("survival")) as opened:
        yield opened


def server_app(study: StudyInWindows, name: str) -> psutil.Process:
    """The process that serves a run: the one that holds its folder's lock."""
    return psutil.Process(int((study.run_folder(name) / ".lock").read_text()))


def rounds(study: StudyInWindows, name: str) -> list[int]:
    return [event["round"] for event in study.events(name, "round-finished")]


def resume(study: StudyInWindows, name: str, last: int, log: Path) -> str:
    """Resume a run up to round ``last``; what the command printed."""
    words = ("coordinator", "resume", study.study, name, "--set", f"num-server-rounds={last}")
    with window(log, *words) as running:
        assert running.process.wait(120) == 0, running.text
        return running.text


def test_a_killed_worker_is_refused_for_by_name_and_comes_back(study: StudyInWindows, tmp_path: Path) -> None:
    """Killed in mid-run: its node stays connected, answers for it, and the run goes on with the other."""
    name, words = "worker", study.run("worker", LONG, "minimum-sites=1")
    with window(tmp_path / "run.log", *words) as running:
        study.wait_for_round(name, 1, running)
        study.hospitals["northside"].child("federation.site.worker").kill()
        assert until(lambda: bool(study.events(name, "site-refused", "site-missing"))), running.text
        [told, *_] = study.events(name, "site-refused", "site-missing")
        assert told["site"] == "northside"
        assert told["reason"]
        back = told["round"] + 1

        def both_again() -> bool:
            events = study.events(name, "round-finished")
            return any(event["round"] >= back and len(event["sites"]) == 2 for event in events)

        assert until(both_again), running.text
        assert running.press_ctrl_c() == (130, [])
    finished = rounds(study, name)
    assert finished == list(range(1, len(finished) + 1))
    assert "the site worker ended; starting it again" in study.hospitals["northside"].text


@pytest.mark.slow
def test_a_killed_server_app_fails_the_run_and_resume_goes_on(study: StudyInWindows, tmp_path: Path) -> None:
    name = "server-app"
    with window(tmp_path / "run.log", *study.run(name, LONG)) as running:
        study.wait_for_round(name, 2, running)
        server_app(study, name).kill()
        assert running.process.wait(120) == 1, running.text
    assert "error: the run ended as finished:failed" in running.text
    done = study.events(name, "checkpoint-saved")[-1]["round"]
    [state] = [run["state"] for run in study.status()["runs"] if run["name"] == name]
    assert state == "interrupted"
    text = resume(study, name, done + 2, tmp_path / "resume.log")
    assert f"resumed after round {done}\n" in text
    events = study.events(name, "run-resumed", "round-finished")
    after = events[[event["event"] for event in events].index("run-resumed") + 1 :]
    assert [event["round"] for event in after] == [done + 1, done + 2]


@pytest.mark.slow
def test_a_killed_node_is_missing_by_name_and_the_run_goes_on(study: StudyInWindows, tmp_path: Path) -> None:
    """Its supervisor starts it again; Flower re-admits it after a minute."""
    name, words = "node", study.run("node", LONG, "minimum-sites=1", "round-deadline=30")
    with window(tmp_path / "run.log", *words) as running:
        study.wait_for_round(name, 1, running)
        study.hospitals["st-mary"].child("flower_processes.node").kill()
        assert until(lambda: bool(study.events(name, "site-missing"))), running.text
        gone = study.events(name, "site-missing")[0]
        assert gone["site"] == "st-mary"
        assert until(lambda: rounds(study, name)[-1] > gone["round"]), running.text

        def back() -> bool:
            events = study.events(name, "round-finished")
            return any(event["round"] > gone["round"] and len(event["sites"]) == 2 for event in events)

        assert until(back, within=200), running.text
        assert running.press_ctrl_c() == (130, [])


@pytest.mark.slow
def test_a_killed_superlink_ends_the_coordinator_and_its_run_is_resumed_after_a_restart(
    tmp_path: Path,
) -> None:
    """A study of its own, whose coordinator is started twice; its nodes find it again by themselves."""
    with study_in_windows(tmp_path) as study:
        name = "superlink"
        with window(tmp_path / "run.log", *study.run(name, LONG)) as running:
            study.wait_for_round(name, 2, running)
            study.coordinator.child("flower-superlink").kill()
            assert running.process.wait(120) == FederationError.exit_code, running.text
        assert study.coordinator.process.wait(120) == FederationError.exit_code, study.coordinator.text
        assert "the superlink ended with status -9" in study.coordinator.text
        done = study.events(name, "checkpoint-saved")[-1]["round"]
        words = ("coordinator", "start", study.study, "--threads", "1")
        with window(tmp_path / "again.log", *words) as again:
            again.wait_for("Ctrl-C stops")
            text = resume(study, name, done + 2, tmp_path / "resume.log")
            assert f"resumed after round {done}\n" in text
            assert rounds(study, name) == list(range(1, done + 3))
            assert again.press_ctrl_c() == (0, [])
