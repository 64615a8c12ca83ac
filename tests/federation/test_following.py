"""Following a run from outside: whole lines only, the true final state, the run's own reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from federation import following
from federation.coordinator.events import EventLog
from federation.flower_processes.control import RunStatus
from federation.following import Event, EventTail, RunFailedError, follow_run, raise_unless_completed
from instahide.errors import FederationError


class ScriptedControl:
    """Answers one status after another, the last one for ever; may write events in between."""

    def __init__(self, *statuses: str, before_last: Any = lambda: None) -> None:
        self._statuses = list(statuses)
        self._before_last = before_last
        self.asked: list[int] = []

    def run_status(self, run_id: int) -> RunStatus:
        self.asked.append(run_id)
        if len(self._statuses) == 1:
            self._before_last()
            return RunStatus(run_id, self._statuses[0], "why Flower thinks so")
        return RunStatus(run_id, self._statuses.pop(0), "")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.0)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_events_come_once_and_only_as_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.read() == []  # not there yet
    append(path, '{"event": "run-started"}\n{"event": "round-')
    assert tail.read() == [{"event": "run-started"}]
    assert tail.read() == []
    append(path, 'started"}\n')
    assert tail.read() == [{"event": "round-started"}]


def test_a_resumed_run_is_followed_from_here_on(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append(path, '{"event": "run-started"}\n')
    tail = EventTail(path, from_start=False)
    append(path, '{"event": "run-resumed"}\n')
    assert tail.read() == [{"event": "run-resumed"}]


def test_half_a_line_of_a_killed_coordinator_does_not_confuse_its_follower(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append(path, '{"event": "run-started"}\n{"event": "round-started", "rou')
    tail = EventTail(path, from_start=False)
    log = EventLog(path)  # cuts the half line off, as the resumed ServerApp does
    log.emit("run-resumed", **{"after-round": 0})
    log.close()
    assert [event["event"] for event in tail.read()] == ["run-resumed"]


def test_every_event_is_shown_before_the_end_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append(path, '{"event": "run-started"}\n')
    control = ScriptedControl(
        "running", "finished:completed", before_last=lambda: append(path, '{"event": "run-finished"}\n')
    )
    seen: list[Event] = []
    status = follow_run(control, 7, EventTail(path), seen.append)  # type: ignore[arg-type]
    assert status.is_completed
    assert [event["event"] for event in seen] == ["run-started", "run-finished"]
    assert set(control.asked) == {7}


def test_the_caller_can_end_the_waiting(tmp_path: Path) -> None:
    def gone() -> None:
        raise FederationError("the gateway ended")

    with pytest.raises(FederationError, match="gateway ended"):
        follow_run(
            ScriptedControl("running"),  # type: ignore[arg-type]
            1,
            EventTail(tmp_path / "events.jsonl"),
            print,
            check=gone,
        )


def test_a_completed_run_raises_nothing() -> None:
    raise_unless_completed(RunStatus(1, "finished:completed", ""), [])


@pytest.mark.parametrize(("state", "code"), [("finished:failed", 1), ("finished:stopped", 130)])
def test_a_run_that_did_not_complete_gives_its_own_reason_and_exit_code(state: str, code: int) -> None:
    events = json.loads('[{"event": "run-failed", "reason": "no quorum", "hint": "add a site"}]')
    with pytest.raises(RunFailedError, match="no quorum") as failure:
        raise_unless_completed(RunStatus(1, state, "exit code 1"), events)
    assert failure.value.exit_code == code
    assert failure.value.hint == "add a site"


def test_a_run_that_died_without_a_word_gives_flowers_reason() -> None:
    with pytest.raises(RunFailedError, match="exit code 1") as failure:
        raise_unless_completed(RunStatus(1, "finished:failed", "exit code 1"), [{"event": "run-started"}])
    assert "log" in failure.value.hint
