"""A service manager's end of the notification socket: a real Unix datagram socket."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ManagerSocket:
    """What systemd listens on; ``name`` is what goes into NOTIFY_SOCKET."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)

    def receive(self, within: float = 30.0) -> dict[str, str]:
        """The next message as its assignments; TimeoutError if none comes."""
        self._socket.settimeout(within)
        lines = self._socket.recv(65_536).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def is_empty(self) -> bool:
        """Whether no message waits."""
        self._socket.setblocking(False)
        try:
            self._socket.recv(65_536)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@contextmanager
def manager_socket(folder: Path, *, abstract: bool = False) -> Iterator[ManagerSocket]:
    """A socket in ``folder``, or under an abstract name of its own."""
    name = f"@instahide-test-{secrets.token_hex(8)}" if abstract else str(folder / "notify")
    manager = ManagerSocket(name)
    try:
        yield manager
    finally:
        manager.close()
