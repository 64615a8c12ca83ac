"""The worker's door: a Unix socket that only named operating-system users may use.

Three things guard it: the folder (mode 0700, ours), the socket file (mode 0600), and the
kernel's word on who is at the other end (SO_PEERCRED, which a peer cannot forge). A lock
file beside the socket says whether its worker lives: the kernel drops the lock with the
process, however it dies, so the socket of a dead worker is replaced and a live one's is not.

With ``group`` the door opens to one more group (modes 0750 and 0660), so that the relay can
run as another user who cannot read the data; the list of allowed users still decides.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Final

from instahide.errors import FederationError, InvalidInputError, RefusedError

MAX_SOCKET_PATH_BYTES: Final = 107
"""``sun_path`` holds 108 bytes with its final zero (unix(7))."""

_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid

logger = logging.getLogger(__name__)


class Listener:
    """A bound, listening socket; closes and removes itself.

    Args:
        path: where the socket file goes; its folder is created with mode 0700 if missing.
        allowed_uids: the users who may connect.
        group: a group id that may reach the socket file, for a relay under another user.

    Raises:
        InvalidInputError: the path is too long, or is taken by a file that is no socket.
        RefusedError: another worker lives there, or the folder is open to other users.
    """

    def __init__(self, path: Path, *, allowed_uids: Collection[int], group: int | None = None) -> None:
        check_socket_path(path)
        _prepare_folder(path.parent, group)
        self.path = path
        self.allowed_uids = frozenset(allowed_uids)
        self._lock = _take_lock(path)
        try:
            self._socket = _bind(path, group)
        except BaseException:
            os.close(self._lock)
            raise

    def accept(self, timeout: float) -> socket.socket | None:
        """The next connection of an allowed user; ``None`` after ``timeout`` seconds or for a stranger."""
        self._socket.settimeout(timeout)
        try:
            connection, _ = self._socket.accept()
        except TimeoutError:
            return None
        uid = peer_uid(connection)
        if uid not in self.allowed_uids:
            logger.warning("refused a connection of user id %s: not among allowed-uids", uid)
            connection.close()
            return None
        return connection

    def close(self) -> None:
        """Stop listening and remove the socket file."""
        self._socket.close()
        self.path.unlink(missing_ok=True)
        os.close(self._lock)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def peer_uid(connection: socket.socket) -> int:
    """The user id at the other end, as the kernel noted it at ``connect``."""
    if not hasattr(socket, "SO_PEERCRED"):
        raise FederationError(
            "this system cannot name the user behind a socket", hint="run the site worker on Linux"
        )
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def check_socket_path(path: Path) -> None:
    """Raise InvalidInputError for a path that the kernel would cut or refuse."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise InvalidInputError(
            f"the socket path has {length} bytes; the system allows {MAX_SOCKET_PATH_BYTES}",
            hint="put the socket in a folder with a short path, such as /run/instahide",
        )


def _prepare_folder(folder: Path, group: int | None) -> None:
    if not folder.exists():
        folder.mkdir(parents=True, mode=0o700)
        if group is not None:
            os.chown(folder, -1, group)
            folder.chmod(0o750)
    found = folder.stat()
    forbidden = 0o027 if group is not None else 0o077
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & forbidden:
        raise RefusedError(
            f"the socket's folder has mode {stat.S_IMODE(found.st_mode):04o} or another owner",
            hint="give the socket a folder of its own, owned by this user, mode 0700",
        )


def _take_lock(path: Path) -> int:
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise RefusedError(
            "another site worker already listens on this socket",
            hint="stop it first, or give this one another socket-path",
        ) from error
    return lock


def _bind(path: Path, group: int | None) -> socket.socket:
    if path.is_symlink() or (path.exists() and not path.is_socket()):
        raise InvalidInputError("the socket path is taken by a file", hint="choose another socket-path")
    path.unlink(missing_ok=True)  # a dead worker's: we hold the lock
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))  # the folder lets nobody in before the next line
        path.chmod(0o600)
        if group is not None:
            os.chown(path, -1, group)
            path.chmod(0o660)
        listening.listen(8)
    except BaseException:
        listening.close()
        raise
    return listening
