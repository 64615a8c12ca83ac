"""A service manager's end of the notification socket: a real Unix datagram socket, read all the time."""

from __future__ import annotations

import queue
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = b"MARK=1"
END = b"END=1"


class ManagerSocket:
    """What systemd listens on; ``name`` is what goes into NOTIFY_SOCKET."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        self._messages: queue.Queue[bytes] = queue.Queue()
        # The kernel keeps a few messages only; a sender would wait, and then drop the rest.
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def receive(self, within: float = 60.0) -> dict[str, str]:
        """The next message as its assignments; queue.Empty if none comes."""
        lines = self._messages.get(timeout=within).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def is_empty(self) -> bool:
        """Whether no message waits; those that did are taken away."""
        self._send(MARK)
        waiting = 0
        while self._messages.get(timeout=60.0) != MARK:
            waiting += 1
        return waiting == 0

    def close(self) -> None:
        self._send(END)
        self._reader.join()
        self._socket.close()

    def _send(self, message: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(message, self._address)

    def _read(self) -> None:
        while (message := self._socket.recv(65_536)) != END:
            self._messages.put(message)


@contextmanager
def manager_socket(folder: Path, *, abstract: bool = False) -> Iterator[ManagerSocket]:
    """A socket in ``folder``, or under an abstract name of its own."""
    name = f"@instahide-test-{secrets.token_hex(8)}" if abstract else str(folder / "notify")
    manager = ManagerSocket(name)
    try:
        yield manager
    finally:
        manager.close()
