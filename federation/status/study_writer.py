"""The one writer of a study's status files: the supervisor behind ``instahide coordinator start``.

Who could write them? The ServerApp knows a round first, but lives only while a run does, must not
fail for a picture, and ends where a supervisor goes on to say "it ended". The supervisor looks at
its processes every second anyway, sees all runs, certificates and connected nodes, is there between runs,
and cannot harm a run: it only reads what the run wrote. So it writes, and nobody else: two writers
would show two truths. The price is that the page is up to a second behind the events, and that it is as old
as the supervisor's end when the coordinator is down. It says when it was written.

``look`` is called every second. It writes when an event came, a hospital came or went, or the
files are ``REWRITE_SECONDS`` old, and says each new event in a line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ..study import Study
from .files import StatusFiles
from .page_parts import REWRITE_SECONDS
from .study_metrics import study_metrics
from .study_page import study_page
from .study_status import DOWN, STOPPED, UP, Presence, StudyWatch

DescribeEvent = Callable[[dict[str, Any]], str | None]


class StudyWriter:
    """Keeps ``status.html`` and ``metrics.prom`` of a study up to date.

    Args:
        study: whose files are read.
        files: what is written.
        presence: who is connected, or None while that is not known.
        say: takes a line for the log.
        describe: an event in words, or None for those that only machines need.
    """

    def __init__(
        self,
        study: Study,
        files: StatusFiles,
        *,
        presence: Callable[[], Presence | None],
        say: Callable[[str], None],
        describe: DescribeEvent,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._watch = files, StudyWatch(study)
        self._presence, self._say, self._describe = presence, say, describe
        self._now, self._monotonic = now, monotonic
        self._written_at = float("-inf")
        self._shown: object = None
        self._new_events()  # what was there before is no news

    def look(self) -> bool:
        """Say what is new; write the files if something is, or they are old. Whether they were written."""
        present = self._presence()
        events = self._new_events()
        for run, event in events:
            if words := self._describe(event):
                self._say(f"run {run}: {words}")
        now = self._monotonic()
        if not events and present == self._shown and now - self._written_at < REWRITE_SECONDS:
            return False
        self._shown, self._written_at = present, now
        return self._write(UP, present)

    def close(self, problem: str = "") -> None:
        """Write a last time: that the coordinator was stopped, or that it went down and why."""
        self._new_events()
        self._write(DOWN if problem else STOPPED, None, problem)

    def _new_events(self) -> list[tuple[str, dict[str, Any]]]:
        try:
            return self._watch.read_events()
        except OSError:  # the next ``status`` fails the same way and says so
            return []

    def _write(self, coordinator: str, present: Presence | None, problem: str = "") -> bool:
        def make() -> tuple[str, str]:
            status = self._watch.status(
                self._now(), coordinator=coordinator, presence=present, down_reason=problem
            )
            return study_page(status), study_metrics(status)

        return self._files.write(make)
