"""What one request may cost the site: seconds and memory, looked at between training steps.

``RLIMIT_AS`` counts address space, of which torch reserves many times what it uses, and a process
that meets it dies in a library. So the worker looks at its resident memory and its clock before
each step, stops in order and refuses. One step, or one evaluation, can overrun by what it takes
itself; a hard wall is the operating system's (a systemd unit's ``MemoryMax``, a container's limit).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from instahide.errors import RefusedError

GIB = 2**30


class LimitError(RefusedError):
    """The request took more of the machine than the site's policy allows."""


class RequestLimits:
    """Watches one request; as a function, the training loop's ``should_stop``.

    Args:
        should_stop: whether the request was abandoned.
        max_seconds: from now.
        max_memory_gib: resident memory of this process.
        memory: how much that is now, in bytes.
        clock: seconds that pass.
    """

    def __init__(
        self,
        should_stop: Callable[[], bool],
        *,
        max_seconds: float,
        max_memory_gib: float,
        memory: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._should_stop, self._clock = should_stop, clock
        self._memory = memory or _resident_memory()
        self._max_seconds, self._max_bytes = max_seconds, max_memory_gib * GIB
        self._began = clock()

    def __call__(self) -> bool:
        """Whether to stop, for any reason."""
        return self._should_stop() or bool(self._overrun())

    def check(self) -> None:
        """Raise LimitError, in words for both sides, if a limit is passed."""
        overrun = self._overrun()
        if overrun:
            raise LimitError(overrun, hint="a smaller model, batch-size or local-epochs, or ask the site")

    def _overrun(self) -> str:
        if self._clock() - self._began > self._max_seconds:
            return f"the request took longer than the {self._max_seconds:g} s this site gives to one"
        if self._memory() > self._max_bytes:
            return f"the site worker uses more than the {self._max_bytes / GIB:g} GiB it may"
        return ""


def _resident_memory() -> Callable[[], int]:
    process = psutil.Process()
    return lambda: int(process.memory_info().rss)
