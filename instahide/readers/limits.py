"""What a reader refuses, and how it says so: caps, safe opening, and the quarantine list.

A data folder is somebody else's input. Every cap is checked on a *declared* size (a file's
length, a picture's header, an archive's directory) before memory is taken for it; no link is
followed; and a file that cannot be used is set aside with a reason instead of stopping the
rest, until more than ``max_bad_fraction`` of them are bad.
"""

from __future__ import annotations

import logging
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ..errors import InstaHideError, IntegrityError, InvalidInputError, RefusedError
from ..images import MAX_PIXELS_PER_IMAGE

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Caps for one call of a reader; raise them knowingly for data you made yourself.

    ``max_pixels`` per picture (H·W), ``max_file_bytes`` per picture, DICOM, CSV or label file,
    ``max_volume_bytes`` for the voxels of one volume or series (and the file of a volume),
    ``max_decoded_bytes`` for what must lie in memory, ``max_files`` and ``max_depth`` for a
    folder; arrays of more than ``map_above_bytes`` stay on disk as memory maps where they can.
    """

    max_pixels: int = MAX_PIXELS_PER_IMAGE
    max_file_bytes: int = 256 * MIB
    max_volume_bytes: int = 2048 * MIB
    max_decoded_bytes: int = 16 * 1024 * MIB
    max_files: int = 5_000_000
    max_depth: int = 16
    map_above_bytes: int = 256 * MIB


@dataclass(frozen=True, order=True)
class QuarantinedFile:
    """A file that was set aside: its name relative to the data set, and why."""

    name: str
    reason: str


class UnreadableError(Exception):
    """One file cannot be used; never leaves the readers (it becomes a QuarantinedFile)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def display_name(path: str | os.PathLike[str]) -> str:
    """``path`` fit for a terminal or JSON: control and undecodable characters escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def relative_name(path: Path, root: Path) -> str:
    """``path`` as shown to people: relative to ``root``, with forward slashes."""
    return display_name(path.relative_to(root).as_posix())


def resolve_inside(root: Path, relative: str, *, where: str) -> Path:
    """The file that ``relative`` (from a manifest) names below ``root``.

    Raises:
        RefusedError: an absolute path, or one that climbs out with ``..``.
        UnreadableError: a link on the way, which is not followed.
    """
    parts = PurePosixPath(relative.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or "\0" in relative or not parts.parts:
        raise RefusedError(
            f"{where}: path {display_name(relative)!r} leaves the data folder",
            hint="give paths relative to the folder of the CSV file, without '..'",
        )
    path = root
    for part in parts.parts:
        path = path / part
        if path.is_symlink():
            raise UnreadableError("symbolic link, not followed")
    return path


def open_regular(path: Path) -> int:
    """A descriptor of a regular file; links, pipes and devices raise UnreadableError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise UnreadableError(_why_not_opened(path, error)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnreadableError("not a regular file")
    return descriptor


def read_bytes(path: Path, limits: Limits) -> bytes:
    """The whole of a small regular file; UnreadableError when it is too large or empty."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limits.max_file_bytes:
            raise UnreadableError(f"{size:,} bytes, above the cap of {limits.max_file_bytes:,}")
        if size == 0:
            raise UnreadableError("empty file")
        return file.read(limits.max_file_bytes)


def read_exactly(stream: IO[bytes], num_bytes: int) -> NDArray[np.uint8]:
    """Exactly ``num_bytes`` of ``stream``; memory fills as they come, not as they are declared."""
    flat = np.empty(num_bytes, dtype=np.uint8)
    filled = 0
    while filled < num_bytes:
        piece = stream.read(min(16 * MIB, num_bytes - filled))
        if not piece:
            raise UnreadableError(f"ends after {filled:,} of {num_bytes:,} bytes")
        flat[filled : filled + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        filled += len(piece)
    return flat


def _why_not_opened(path: Path, error: Exception) -> str:
    if path.is_symlink():
        return "symbolic link, not followed"
    if isinstance(error, FileNotFoundError):
        return "file not found"
    return (error.strerror or "cannot be opened").lower() if isinstance(error, OSError) else "bad file name"


def check_decoded_size(num_bytes: int, what: str, limits: Limits) -> None:
    """Refuse ``num_bytes`` of memory above the cap, before anybody allocates them."""
    if num_bytes > limits.max_decoded_bytes:
        raise RefusedError(
            f"{what} would take {num_bytes:,} bytes of memory, above the cap of {limits.max_decoded_bytes:,}",
            hint="store the images as .npy (memory-mapped), give a smaller image_size, or raise "
            "Limits.max_decoded_bytes",
        )


def check_bad_fraction(
    quarantined: Sequence[QuarantinedFile], num_files: int, max_bad_fraction: float
) -> None:
    """Raise InvalidInputError when more than ``max_bad_fraction`` of ``num_files`` are set aside."""
    bad = len(quarantined)
    if bad == 0 or bad <= max_bad_fraction * num_files:
        return
    shown = "; ".join(f"{file.name}: {file.reason}" for file in quarantined[:3])
    more = f" (and {bad - 3} more)" if bad > 3 else ""
    raise InvalidInputError(
        f"{bad} of {num_files} files cannot be used, more than {max_bad_fraction:.1%}: {shown}{more}",
        hint="`instahide dataset inspect PATH` lists them all; mend or remove them, or raise "
        "max_bad_fraction (--max-bad-fraction) to go on without them",
    )


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong inside a container file is that file's fault: raise IntegrityError.

    The parsers behind this door (zip, gzip, npy headers) fail on hostile bytes in many ways,
    and all of them mean the same thing to the person who gave the file.
    """
    try:
        yield
    except InstaHideError:
        raise
    except UnreadableError as error:
        raise IntegrityError(
            f"{display_name(path.name)}: {error.reason}", hint=f"give {what}, complete and unedited"
        ) from None
    except Exception as error:
        raise IntegrityError(
            f"{display_name(path.name)} is corrupt, truncated or not {what} ({type(error).__name__})",
            hint="fetch or export the file again",
        ) from error


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Silence what the image libraries would print: it quotes header values, which may be a patient's."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel.global")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(PIL|pydicom|nibabel)(\.|$)")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
