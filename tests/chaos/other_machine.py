"""The machines that a fault spares: a process of its own, which outlives the one that is killed.

A coordinator that is killed finds its sites as it left them, and the sites' sessions with them; a site
that is killed has a coordinator that goes on. ``start`` forks such a process; both ends talk over a
socket of the abstract name space, so no file is made and no path can be too long.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

PATIENCE = 120  # seconds until a process that nobody came back to ends by itself
Accept = Callable[[], Connection]


def start(serve: Callable[[Accept], None], note: Path) -> Connection:
    """Fork a process that runs ``serve``; the first connection to it. ``note`` remembers the way."""
    address = "\0chaos-" + secrets.token_hex(8)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    if os.fork() == 0:
        try:
            _leave_alone(listener)
            serve(lambda: Connection(listener.accept()[0].detach()))
        except BaseException:
            note.with_name("other-machine.error").write_text(traceback.format_exc())
        finally:
            os._exit(0)
    listener.close()
    note.write_text(address)
    found = find(note)
    assert found is not None
    return found


def find(note: Path) -> Connection | None:
    """A connection to the process that an earlier ``start`` made; None if it has ended."""
    if not note.exists():
        return None
    caller = socket.socket(socket.AF_UNIX)
    try:
        caller.connect(note.read_text())
    except OSError:
        caller.close()
        return None
    return Connection(caller.detach())


def _leave_alone(listener: socket.socket) -> None:
    """Nobody waits for this process: it keeps no pipe of its maker's open, and no terminal."""
    os.setsid()
    signal.alarm(PATIENCE)
    nowhere = os.open(os.devnull, os.O_RDWR)
    # Not closed: an object of its maker's may close its number once more, which must not be in use again.
    for number in {int(path.name) for path in Path("/proc/self/fd").iterdir()} - {nowhere, listener.fileno()}:
        with suppress(OSError):  # the listing's own
            os.fstat(number)
            os.dup2(nowhere, number)
