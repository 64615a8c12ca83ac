"""A bad link: a TCP proxy that is slow, narrow, breaks connections, changes bits, or falls silent."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

PIECE = 16 * 1024
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of zero seconds: closing sends RST, as a lost peer does


class BadLink:
    """Listens on a port of ``host`` and passes everything on to ``target``, as badly as it is told.

    Attributes (may be changed while it runs):
        target: where new connections go.
        delay: seconds each piece of up to 16 KiB waits, in each direction.
        bytes_per_second: of one direction of one connection; 0 is no limit.
        silent: nothing passes, nothing is closed.
        resets_every: mean seconds between two resets of a random connection; 0 is none.
        change_next: one bit of the next piece is changed, once.
    """

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1") -> None:
        self.target = target
        self.delay, self.bytes_per_second, self.resets_every = 0.0, 0.0, 0.0
        self.silent = self.change_next = False
        self.changes = 0
        self.resets = self.connections = self.bytes_passed = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._listener = socket.create_server((host, 0))
        self.port = int(self._listener.getsockname()[1])
        for work in (self._accept, self._reset_now_and_then):
            threading.Thread(target=work, daemon=True).start()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                continue
            try:
                far = socket.create_connection(self.target, timeout=10.0)
            except OSError:  # nobody is there: the caller is to see a lost connection
                near.close()
                continue
            far.settimeout(None)
            self.connections += 1
            with self._lock:
                self._open |= {near, far}
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(PIECE):
                time.sleep(self.delay + (len(data) / self.bytes_per_second if self.bytes_per_second else 0.0))
                while self.silent and not self._ended.is_set():
                    time.sleep(0.1)
                sink.sendall(self._perhaps_changed(data))
                self.bytes_passed += len(data)
        self._close(source, sink)

    def _perhaps_changed(self, data: bytes) -> bytes:
        with self._lock:
            if not self.change_next:
                return data
            self.change_next = False
            self.changes += 1
        changed = bytearray(data)
        changed[len(data) // 2] ^= 1
        return bytes(changed)

    def _reset_now_and_then(self) -> None:
        chance = random.Random()
        while not self._ended.wait(0.1):
            if self.resets_every and chance.random() < 0.1 / self.resets_every:
                self.reset_one(chance)

    def reset_one(self, chance: random.Random) -> None:
        """Break one connection that is open, if there is one."""
        with self._lock:
            candidates = sorted(self._open, key=id)
        if candidates:
            self.resets += 1
            victim = chance.choice(candidates)
            with suppress(OSError):
                victim.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                victim.shutdown(socket.SHUT_RDWR)
            self._close(victim)

    def reset_all(self) -> None:
        """Break every connection that is open; new ones go to ``target`` as it is by then."""
        with self._lock:
            ends = list(self._open)
        self.resets += len(ends)
        self._close(*ends)

    def _close(self, *ends: socket.socket) -> None:
        with self._lock:
            self._open -= set(ends)
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._listener.close()
        with self._lock:
            ends = list(self._open)
        self._close(*ends)
