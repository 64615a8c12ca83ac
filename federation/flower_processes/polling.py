"""How a node waits: the clock that Flower's SuperNode loop sleeps by, made considerate.

The loop of Flower's SuperNode has two sleeps, both hard-coded: three seconds whenever there is
no message, and half a second while the ClientApp works. Each costs a round that much. We give
that one module a ``time`` of ours:

* no message: the sleep starts at ``shortest`` and grows with the waiting already done, at a
  twentieth of it, up to Flower's own three seconds. So a round is noticed within 5 % of the time
  one waited for it, and an idle hospital asks no more often than with stock Flower;
* ClientApp at work: no polling at all. The relay is told that a task is there, and its reply
  ends the sleep. The half second stays as the longest sleep, so a lost wake-up costs only that.

``install`` refuses quietly (a warning, stock timing) if Flower's module does not look as known.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
import threading
import time
from collections.abc import Callable
from types import ModuleType

log = logging.getLogger("node")

KNOWN_SLEEPS = ["time.sleep(0.5)", "time.sleep(0.5)", "time.sleep(3)"]
IDLE_SLEEP = 3.0  # what Flower sleeps when there is no message
SHORTEST = 0.2
SHARE_OF_WAITING = 0.05
FIRST_BACKOFF = 0.1  # seconds; Flower waits 1 and doubles it each time, up to 10


class NodeClock:
    """Stands in for the module ``time`` inside Flower's SuperNode loop."""

    def __init__(
        self, *, shortest: float = SHORTEST, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.shortest = shortest
        self.task_waiting = threading.Event()
        self.reply_ready = threading.Event()
        self._closing = threading.Event()
        self._monotonic = monotonic
        self._idle_since: float | None = None

    def sleep(self, seconds: float) -> None:
        """Sleep as Flower asks, or shorter; see the module's text."""
        if seconds >= IDLE_SLEEP:
            self._closing.wait(self.idle_sleep())
            return
        self._idle_since = None
        self.task_waiting.set()
        self.reply_ready.wait(seconds)
        self.reply_ready.clear()

    def idle_sleep(self) -> float:
        """Seconds until the next look for a message, given how long there has been none."""
        now = self._monotonic()
        if self._idle_since is None:
            self._idle_since = now
        waited = now - self._idle_since
        return min(IDLE_SLEEP, max(self.shortest, SHARE_OF_WAITING * waited))

    def __getattr__(self, name: str) -> object:
        """Everything else of ``time`` is the real one."""
        return getattr(time, name)


def install(clock: NodeClock, loop_module: ModuleType) -> bool:
    """Let Flower's loop module sleep by ``clock``; False (and a warning) if it is not as known."""
    if problem := _difference(loop_module):
        log.warning("using Flower's own polling, rounds will take seconds longer: %s", problem)
        return False
    loop_module.time = clock  # type: ignore[attr-defined]
    return True


def look_again_soon(loop_module: ModuleType, *, first_wait: float = FIRST_BACKOFF) -> bool:
    """Shorten the loop's wait for an object that is still on its way; False (and a warning) if it cannot be.

    A message is visible before its objects are all stored, and Flower then looks again after a
    second: a node that is quick to notice a message would pay for it in most rounds.
    """
    pull = getattr(loop_module, "pull_objects", None)
    if pull is None or "initial_backoff" not in inspect.signature(pull).parameters:
        log.warning("using Flower's own wait for objects, rounds will take longer")
        return False
    loop_module.pull_objects = functools.partial(pull, initial_backoff=first_wait)  # type: ignore[attr-defined]
    return True


def _difference(loop_module: ModuleType) -> str | None:
    """What is not as in the Flower versions this was written for (1.41 and 1.42)."""
    if getattr(loop_module, "time", None) is not time:
        return "its module does not import time"
    try:
        source = inspect.getsource(loop_module)
    except (OSError, TypeError):
        return "its source is not readable"
    found = sorted(re.findall(r"\btime\.\w+\([^)]*\)", source))
    return None if found == KNOWN_SLEEPS else f"it calls {found} instead of {KNOWN_SLEEPS}"
