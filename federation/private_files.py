"""Files that hold a secret: made once with mode 0600, read only where nobody else can have touched them.

Written  beside their place and put there with a hard link, which fails where there is a file: no
         secret is ever overwritten, and nobody sees half of one.
Read     through a descriptor that follows no symbolic link (``O_NOFOLLOW``), of a regular file of
         this user that has no permission bit for others: who can move a link can swap a key.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

from instahide.atomic import first_error_wins, sync_folder
from instahide.errors import InvalidInputError, RefusedError

MAX_BYTES = 1 << 20


def write_private_file(path: Path, data: bytes) -> None:
    """Create ``path`` with mode 0600 and ``data``, whole or not at all; refused if it exists."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        raise _holds_a_secret(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with first_error_wins(lambda: Path(name).unlink(missing_ok=True)):
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _rename_exclusively(name, path)
            sync_folder(path.parent)
    except FileExistsError as error:  # also for a symbolic link that leads nowhere
        raise _holds_a_secret(path) from error


def read_private_file(path: Path, *, what: str, restore: str) -> bytes:
    """The bytes of a secret's file. ``what`` names it in errors; ``restore`` says where it comes from.

    Raises:
        InvalidInputError: there is no such file, or it cannot be read.
        RefusedError: it is a symbolic link or no regular file, it is another user's, or others than
            its owner may read or write it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RefusedError(
                f"{what} {path} is a symbolic link",
                hint="put the file itself there: whoever moves a link swaps the key",
            ) from error
        missing = isinstance(error, FileNotFoundError)
        reason = "is missing" if missing else f"cannot be read: {error.strerror}"
        raise InvalidInputError(f"{what} {path} {reason}", hint=restore) from error
    try:
        _check_private(os.fstat(descriptor), path, what)
        return os.read(descriptor, MAX_BYTES)
    finally:
        os.close(descriptor)


def _check_private(status: os.stat_result, path: Path, what: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError(f"{what} {path} is no regular file", hint="restore it from a backup")
    if status.st_uid != os.geteuid():
        raise RefusedError(
            f"{what} {path} belongs to user {status.st_uid}, this is user {os.geteuid()}",
            hint="run this as the user of the service, or `chown` the file to that user",
        )
    if status.st_mode & 0o077:
        raise RefusedError(f"{what} {path} can be read by others than its owner", hint=f"chmod 600 {path}")


def _rename_exclusively(temporary: str, path: Path) -> None:
    """A rename that fails with FileExistsError where there is a file."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # A file system without hard links: an empty file keeps the place.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        Path(temporary).replace(path)


def _holds_a_secret(path: Path) -> RefusedError:
    return RefusedError(
        f"{path} already exists and holds a secret",
        hint="use another folder, or move the file away if it is no longer needed",
    )
