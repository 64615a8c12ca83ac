"""A verb that stays in the foreground as a service: one line an event, an orderly end.

SIGTERM (a service manager, ``docker stop``, ``kill``) ends it with exit code 0, while it starts as well as
later. Ctrl-C does the same once it serves; before that it interrupts the start (exit code 130).

Every event is one line on standard output: time in UTC, then words, in which what is not
printable was replaced. Under systemd's journal, which has its own clock, the time is left out. The
service manager, if there is one, is told when it serves, ends, and is alive (``service_manager.py``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType

from .messages import one_line
from .service_manager import ServiceManager

LONGEST_LINE = 2000


class _StoppedEarly(BaseException):
    """SIGTERM came while the service started."""


class Foreground:
    """The running verb: says lines, waits, knows whether it was told to end."""

    def __init__(self, manager: ServiceManager, *, with_time: bool) -> None:
        self._manager, self._with_time = manager, with_time
        self._told_to_end = threading.Event()
        self._is_up = False

    def say(self, text: str) -> None:
        """One line on standard output; a log on a full disk is no reason to end."""
        stamp = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} " if self._with_time else ""
        with contextlib.suppress(OSError):
            print(stamp + one_line(text, LONGEST_LINE), flush=True)

    def starting(self, text: str, *, seconds: float) -> None:
        """Say what is being started, and that it may take ``seconds``."""
        self.say(text)
        self._manager.starting(one_line(text), seconds=seconds)

    def ready(self, text: str) -> None:
        """It serves: say so, also to the service manager. From now on Ctrl-C ends it in order."""
        self._is_up = True
        signal.signal(signal.SIGINT, self._end)
        self.say(text)
        self._manager.ready(one_line(text))

    @contextmanager
    def busy(self, seconds: float) -> Iterator[None]:
        """Signs of life while the block keeps us from ``wait``, for at most ``seconds``: a hang is found."""
        done, give_up = threading.Event(), time.monotonic() + seconds

        def give_signs() -> None:
            while not done.wait(0.5) and time.monotonic() < give_up:
                self._manager.alive()

        thread = threading.Thread(target=give_signs, name="signs-of-life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def wait(self, seconds: float) -> bool:
        """Wait, at most ``seconds``; whether it was told to end."""
        self._manager.alive()
        if self._told_to_end.wait(seconds):
            self._manager.stopping()
            return True
        return False

    def _end(self, number: int, frame: FrameType | None) -> None:
        early = not self._is_up and not self._told_to_end.is_set()
        self._told_to_end.set()
        if early:
            raise _StoppedEarly


@contextmanager
def foreground(environment: MutableMapping[str, str] = os.environ) -> Iterator[Foreground]:
    """The service for the length of a block; its signal handlers are put back afterwards."""
    with_time = "JOURNAL_STREAM" not in environment
    service = Foreground(ServiceManager.from_environment(environment), with_time=with_time)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, service._end)
    try:
        with contextlib.suppress(_StoppedEarly):
            yield service
        service.say("stopped")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
