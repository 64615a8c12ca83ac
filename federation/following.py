"""Follow a run from outside: its events as they are written, and its true final state.

The ServerApp writes ``events.jsonl``; Flower knows whether the run has ended and how. Both are
polled here until the run is over, so that a command can show progress and leave with a true
exit code (``flwr run`` itself exits 0 when a run failed).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instahide.errors import FederationError

from .flower_processes.control import ControlClient, RunStatus
from .line_tail import LineTail

Event = dict[str, Any]
POLL_SECONDS = 0.2
STATUS_EVERY = 5  # polls; asking Flower costs a request, reading the file does not


class RunFailedError(FederationError):
    """A run was started and failed (exit code 1) or was stopped (130); the federation may be well."""

    exit_code = 1


class EventTail:
    """New whole lines of an event file at every call; survives the file not being there yet."""

    def __init__(self, path: Path, *, from_start: bool = True) -> None:
        self._lines = LineTail(path, from_start=from_start)

    def read(self) -> list[Event]:
        """Events since the last call, oldest first."""
        return [json.loads(line) for line in self._lines.read()]


def follow_run(
    control: ControlClient,
    run_id: int,
    tail: EventTail,
    on_event: Callable[[Event], None],
    *,
    check: Callable[[], None] = lambda: None,
) -> RunStatus:
    """Hand every event to ``on_event`` until the run is over; its final status.

    ``check`` is called at each poll and may raise (for instance when a coordinator process ended).
    """
    polls = 0
    while True:
        check()
        for event in tail.read():
            on_event(event)
        if polls % STATUS_EVERY == 0:
            status = control.run_status(run_id)
            if status.is_finished:
                for event in tail.read():
                    on_event(event)
                return status
        polls += 1
        time.sleep(POLL_SECONDS)


def raise_unless_completed(status: RunStatus, events: list[Event]) -> None:
    """RunFailedError with the reason the run itself wrote down, if it did not complete."""
    if status.is_completed:
        return
    failed = [event for event in events if event["event"] == "run-failed"]
    reason = failed[-1].get("reason", "") if failed else status.details
    hint = failed[-1].get("hint", "") if failed else "see the SuperExec's log in the study's logs folder"
    failure = RunFailedError(f"the run ended as {status.status}: {reason or 'no reason given'}", hint=hint)
    failure.exit_code = status.exit_code or RunFailedError.exit_code
    raise failure
