"""Signals to the test's own process, which end no more than the test meant to: a failed one, too."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SendSoon = Callable[..., None]


@contextmanager
def harmless_signals() -> Iterator[SendSoon]:
    """While the block runs, SIGTERM without a handler of its own does nothing; yields ``send_soon``.

    What was to be sent is sent before the block ends: none comes later and ends the tests.
    """
    timers: list[threading.Timer] = []

    def send_soon(number: signal.Signals, seconds: float = 0.1) -> None:
        timers.append(threading.Timer(seconds, os.kill, (os.getpid(), number)))
        timers[-1].start()

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield send_soon
    finally:
        signal.signal(signal.SIGINT, lambda *_: None)
        for timer in timers:
            timer.join()
        for number, handler in before.items():
            signal.signal(number, handler)
