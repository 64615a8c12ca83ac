"""Files that are either whole or not there: write beside, fsync, rename, fsync the folder.

A reader never sees half a file, whatever kills the writer; a leftover of a killed writer is
named ``.NAME.XXXX.partial`` and is never mistaken for the file.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, mode: int = 0o644) -> Iterator[Path]:
    """A temporary path in the same folder; on a clean exit it becomes ``path``, else it goes."""
    target = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    with first_error_wins(lambda: temporary.unlink(missing_ok=True)):
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)
        temporary.replace(target)
        sync_folder(target.parent)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``data`` in one step."""
    with atomic_path(path, mode=mode) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | os.PathLike[str], text: str, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``text`` (UTF-8) in one step."""
    atomic_write_bytes(path, text.encode("utf-8"), mode=mode)


@contextmanager
def first_error_wins(close: Callable[[], object]) -> Iterator[None]:
    """Run the block, then ``close``, whatever happened; of two errors the block's is raised.

    On a full disk closing fails as well, and would put its error in the place of the one that says what
    could not be done.
    """
    try:
        yield
    except BaseException:
        with suppress(OSError):
            close()
        raise
    close()


@contextmanager
def nothing_left_on_error(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Where the block fails, take back what it put into ``folder``, and ``folder`` itself if it is new.

    For what is whole with several files only: a second try finds none of them in its way.
    """
    path = Path(folder)
    is_new = not path.exists()
    before = set() if is_new else set(path.iterdir())
    try:
        yield
    except BaseException:
        made = set(path.iterdir()) - before if path.exists() else set()
        for entry in made:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        if is_new and path.exists():
            path.rmdir()
        raise


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    with first_error_wins(lambda: os.close(descriptor)):
        os.fsync(descriptor)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, mode: int = 0o755) -> Iterator[Path]:
    """A temporary folder beside ``path``; on a clean exit it becomes ``path``, else it goes.

    ``path`` must not be there, or be an empty folder; the rename fails with OSError otherwise.
    """
    target = Path(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield temporary
        for written in temporary.iterdir():
            with written.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(temporary)
        temporary.chmod(mode)
        temporary.replace(target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
