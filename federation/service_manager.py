"""What a service tells its manager: systemd's notification protocol, a datagram a message.

    READY=1       it serves now                 STATUS=...    one line for ``systemctl status``
    STOPPING=1    it was told to end            WATCHDOG=1    it is alive
    EXTEND_TIMEOUT_USEC=...                     the start takes this much longer

``NOTIFY_SOCKET`` names a Unix datagram socket: a path, or ``@name`` in the abstract namespace.
Without it nothing is sent. ``WATCHDOG_USEC`` is the time after which a silent service is restarted;
half of it passes between two signs of life. The variables are taken out of the environment, so
that no child process speaks for us. A manager that does not listen never ends a service: what
cannot be sent is dropped. Source: sd_notify(3) and sd_watchdog_enabled(3) of systemd.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Self

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
SEND_SECONDS = 1.0


class ServiceManager:
    """The manager behind ``address``; with "" there is none and every call does nothing."""

    def __init__(
        self,
        address: str = "",
        *,
        watchdog_seconds: float = 0.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._every = watchdog_seconds / 2
        self._monotonic = monotonic
        self._last_sign = float("-inf")

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Self:
        """The manager that the environment names; its variables are removed from there."""
        address, microseconds, pid = (environment.pop(name, "") for name in VARIABLES)
        if not address.startswith(("/", "@")) or len(address) < 2:
            return cls()
        meant_for_us = pid in ("", str(os.getpid()))
        watched = meant_for_us and microseconds.isdecimal()
        return cls(address, watchdog_seconds=int(microseconds) / 1e6 if watched else 0.0)

    def starting(self, status: str, *, seconds: float) -> None:
        """The start goes on, for at most ``seconds`` more."""
        self._send(f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def ready(self, status: str) -> None:
        """It serves; who waited for it may go on."""
        self._send("READY=1", f"STATUS={status}")

    def alive(self) -> None:
        """A sign of life, where one is due; call it often."""
        now = self._monotonic()
        if self._every and now - self._last_sign >= self._every:
            self._last_sign = now
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """It was told to end and does."""
        self._send("STOPPING=1", "STATUS=stopping")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        where = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out,
        ):
            out.settimeout(SEND_SECONDS)  # a manager that hangs, with its queue full
            out.sendto("\n".join(lines).encode(), where)
