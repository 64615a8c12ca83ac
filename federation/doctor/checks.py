"""Checks, their outcomes, and how they are run: all at once, and never longer than agreed.

Each check runs in a thread of its own. What has not come back when the time is up is reported as
such and left behind: a name server or a disk that hangs cannot hang the report. A check that
raises has an outcome too; the report is complete whatever happens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from instahide.errors import InstaHideError

DEFAULT_SECONDS = 8.0  # with the start of the command itself, below ten


class State(StrEnum):
    """How a check ended."""

    ok = "ok"
    warning = "warning"
    failed = "failed"
    skipped = "skipped"


@dataclass(frozen=True)
class Outcome:
    """What was seen, and what to do about it: ``fix`` is empty only where all is well."""

    state: State
    seen: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.seen, "an outcome says what was seen"
        assert bool(self.fix) == (self.state is not State.ok), "what is not ok has a fix, and only that"


def ok(seen: str) -> Outcome:
    """All is well."""
    return Outcome(State.ok, seen)


def warning(seen: str, *, fix: str) -> Outcome:
    """It works today."""
    return Outcome(State.warning, seen, fix)


def failed(seen: str, *, fix: str) -> Outcome:
    """It does not work."""
    return Outcome(State.failed, seen, fix)


def skipped(reason: str, *, fix: str) -> Outcome:
    """It could not be looked at; ``reason`` says why, ``fix`` what would let it."""
    return Outcome(State.skipped, reason, fix)


@dataclass(frozen=True)
class Check:
    """One thing to look at. ``late`` is the outcome if ``look`` has not come back in time."""

    name: str
    look: Callable[[], Outcome]
    late: Outcome | None = None


@dataclass(frozen=True)
class Report:
    """Every check's outcome, in the order of the checks."""

    rows: tuple[tuple[str, Outcome], ...]

    def names(self, state: State) -> tuple[str, ...]:
        """The checks that ended in ``state``."""
        return tuple(name for name, outcome in self.rows if outcome.state is state)

    def to_list(self) -> list[dict[str, Any]]:
        """For JSON: name, state, seen and, where there is one, fix."""
        return [
            {"name": name, "state": outcome.state.value, "seen": outcome.seen}
            | ({"fix": outcome.fix} if outcome.fix else {})
            for name, outcome in self.rows
        ]


def run_checks(checks: Sequence[Check], *, within: float = DEFAULT_SECONDS) -> Report:
    """Run all checks at once and wait ``within`` seconds at most for those that are slow."""
    outcomes: list[Outcome | None] = [None] * len(checks)

    def look(index: int) -> None:
        outcomes[index] = outcome_of(checks[index])

    # Daemons: Python does not wait for them when the command ends.
    threads = [threading.Thread(target=look, args=(index,), daemon=True) for index in range(len(checks))]
    deadline = time.monotonic() + within
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    found = tuple(outcomes)  # one look: a thread that comes back now is too late
    return Report(
        tuple(
            (check.name, outcome or check.late or _late(within))
            for check, outcome in zip(checks, found, strict=True)
        )
    )


def outcome_of(check: Check) -> Outcome:
    """What a check saw; an error it raises is an outcome, too."""
    try:
        return check.look()
    except InstaHideError as error:
        return failed(error.message, fix=error.hint or "mend what is named, and run this again")
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return failed(f"{error.strerror or error}{where}", fix="check the path and its permissions")
    except Exception as error:
        # Only the kind: the words of an unforeseen error may quote a file's content.
        return failed(f"unexpected {type(error).__name__}", fix="this is a fault of the check: report it")


def _late(within: float) -> Outcome:
    return failed(f"no answer within {within:g} s", fix="try again with a longer --wait")
