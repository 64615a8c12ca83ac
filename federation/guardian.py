"""Ends our children's process groups when we are gone, whatever ended us.

A bare program, run as ``python -I -S guardian.py SECONDS`` by ``supervision`` with a pipe as its
standard input. Lines ``watch GROUP`` and ``forget GROUP`` keep its list; the end of the input
means that the process which held the other end has died. Then every group left on the list is
asked to stop, and killed after SECONDS. Needs nothing outside the standard library.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable


def groups_left(lines: Iterable[str]) -> set[int]:
    """Read the list until the input ends; the groups still on it."""
    groups: set[int] = set()
    for line in lines:
        verb, group = line.split()
        if verb == "watch":
            groups.add(int(group))
        else:
            groups.discard(int(group))
    return groups


def end(groups: set[int], seconds: float) -> None:
    """SIGTERM to every group, SIGKILL after ``seconds`` to those that are still there."""
    deadline = time.monotonic() + seconds
    tell(groups, signal.SIGTERM)
    while groups and time.monotonic() < deadline:
        time.sleep(0.05)
        tell(groups, 0)
    tell(groups, signal.SIGKILL)


def tell(groups: set[int], number: int) -> None:
    """Signal every group (0 only asks whether it exists); those that are gone leave the set."""
    for group in list(groups):
        try:
            os.killpg(group, number)
        except OSError:
            groups.discard(group)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end(groups_left(sys.stdin), float(sys.argv[1]))
