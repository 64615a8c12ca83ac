"""``events.jsonl``: what happened in a run, one JSON object a line, appended as it happens.

Every line holds ``time`` (UTC, RFC 3339), ``event`` (a stable name from :data:`EVENTS`) and the
event's own fields. Sites appear under their registered names. A coordinator that was killed
may leave half a line; the next one cuts it off before it appends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from instahide.atomic import first_error_wins

EVENTS = frozenset(
    {
        "run-started",
        "run-resumed",
        "run-finished",
        "run-failed",
        "waiting-for-sites",
        "waiting-for-approval",  # the quorum needs sites that have not approved the plan yet
        "round-started",
        "round-finished",
        "round-failed",  # below the quorum; tried again while max-failed-rounds allows
        "evaluation-started",
        "evaluation-finished",
        "site-replied",
        "site-refused",  # the site's own decision: policy, budget, or an error it explains
        "site-rejected",  # the reply came and did not pass validation
        "site-failed",  # an error reply
        "site-missing",  # no reply: offline, restarted, or past the deadline
        "site-late",  # an answer to a round that is over; not used
        "site-name-differs",
        "reply-ignored",  # from a node that was not asked, or a second time
        "update-clipped",
        "session-opened",  # secure aggregation: the sites that take part, and the roster's hash
        "sum-opened",  # of the masked updates of these sites; "disputes" names pairs with a wrong share
        "checkpoint-saved",
        "checkpoint-corrupt",
    }
)


class Events(Protocol):
    """Where events go."""

    def emit(self, event: str, **fields: Any) -> None: ...


class EventLog:
    """Appends events to a file; every line is handed to the operating system at once."""

    def __init__(self, path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        _cut_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event. ``fields`` are plain JSON values; an unknown event name is a bug."""
        assert event in EVENTS, event
        stamp = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        # allow_nan=False: a NaN would make the line invalid JSON for every other reader.
        self._file.write(json.dumps({"time": stamp, "event": event, **fields}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Put everything on the disk and close."""
        with first_error_wins(self._file.close):
            os.fsync(self._file.fileno())


def read_events(path: Path) -> list[dict[str, Any]]:
    """All whole lines of an event file; [] if there is none yet."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(path, whole)
