"""idx files, the format of MNIST: ``*-images-idx3-ubyte`` with ``*-labels-idx1-ubyte``, also ``.gz``.

Layout (LeCun, "The MNIST database", file formats): two zero bytes, type 0x08 (unsigned byte), the
number of dimensions, each dimension as a big-endian 32-bit number, then the data. A folder may
hold several pairs; ``train`` in the name makes the train split, ``t10k`` or ``test`` the test
split, ``val`` the validation split.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from .catalogue import WHOLE, ArrayPart, Catalogue
from .limits import (
    Limits,
    UnreadableError,
    check_decoded_size,
    display_name,
    open_regular,
    read_exactly,
    reading,
)

IMAGE_FILE = re.compile(
    r"^(?P<head>.*?)images(?P<mark>[-._])idx[34](?P<tail>-ubyte|\.ubyte|)(?P<gz>\.gz|)$", re.I
)
SPLIT_WORDS = {"train": ("train",), "val": ("val",), "test": ("t10k", "test")}


def find_idx_images(folder: Path) -> list[Path]:
    """The idx image files of a folder; of ``X`` and ``X.gz`` only the first."""
    files = {p.name: p for p in sorted(folder.iterdir()) if IMAGE_FILE.match(p.name) and not p.is_symlink()}
    return [file for name, file in files.items() if name.removesuffix(".gz") not in files or not _is_gz(file)]


def read_idx(image_files: list[Path], limits: Limits) -> Catalogue:
    """The catalogue of some idx image files with their label files.

    Raises:
        InvalidInputError: two files claim one split.
        IntegrityError: a wrong magic number, a size that disagrees, a truncated stream.
        RefusedError: more bytes than the cap.
    """
    parts: dict[str, ArrayPart] = {}
    num_bytes = 0
    for images in image_files:
        split = _split(images)
        if split in parts:
            raise InvalidInputError(
                f"{display_name(images.name)} is a second {split} split", hint="name the images file itself"
            )
        labels = _label_file(images)
        parts[split] = ArrayPart(
            split, _opener(images, limits), None if labels is None else _read(labels, limits, ranks=(1,))
        )
        num_bytes += sum(file.stat().st_size for file in (images, labels) if file is not None)
    order = [split for split in ("train", "val", "test", WHOLE) if split in parts]
    arrays = [part.labels for part in parts.values() if part.labels is not None and part.labels.size]
    names = tuple(str(i) for i in range(max(int(a.max()) for a in arrays) + 1)) if arrays else None
    return Catalogue("idx arrays", tuple(parts[split] for split in order), names, (), num_bytes)


def _opener(path: Path, limits: Limits) -> Any:
    return lambda: _read(path, limits, ranks=(3, 4))


def _read(path: Path, limits: Limits, *, ranks: tuple[int, ...]) -> NDArray[np.uint8]:
    with reading(path, "an idx file of unsigned bytes"), _opened(path) as stream:
        shape = _shape(stream, ranks)
        num_bytes = math.prod(shape)
        offset = 4 + 4 * len(shape)
        if not _is_gz(path):
            held = os.fstat(stream.fileno()).st_size - offset
            if held != num_bytes:
                raise UnreadableError(f"declares {num_bytes:,} bytes of data and holds {held:,}")
            if num_bytes > limits.map_above_bytes:
                return np.memmap(stream, np.uint8, "r", offset, shape)
        check_decoded_size(num_bytes, display_name(path.name), limits)
        flat = read_exactly(stream, num_bytes)
        if stream.read(1):  # for .gz also makes the reader verify the CRC
            raise UnreadableError("longer than it declares")
        return flat.reshape(shape)


def _shape(stream: IO[bytes], ranks: tuple[int, ...]) -> tuple[int, ...]:
    magic = stream.read(4)
    if len(magic) != 4 or magic[:3] != b"\x00\x00\x08" or magic[3] not in ranks:
        raise UnreadableError("not an idx file of unsigned bytes with the expected dimensions")
    sizes = stream.read(4 * magic[3])
    if len(sizes) != 4 * magic[3]:
        raise UnreadableError("truncated header")
    return tuple(int.from_bytes(sizes[place : place + 4], "big") for place in range(0, len(sizes), 4))


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with os.fdopen(open_regular(path), "rb") as file:
        if not _is_gz(path):
            yield file
            return
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream  # type: ignore[misc]  # a GzipFile reads like any binary file
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise UnreadableError("truncated or damaged gzip stream") from None


def _is_gz(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _split(path: Path) -> str:
    name = path.name.lower()
    return next((split for split, words in SPLIT_WORDS.items() if any(w in name for w in words)), WHOLE)


def _label_file(images: Path) -> Path | None:
    match = IMAGE_FILE.match(images.name)
    if match is None:
        return None
    head, mark, tail, gz = match.group("head", "mark", "tail", "gz")
    stem = f"{head}labels{mark}idx1{tail}"
    candidates = [images.with_name(stem + ending) for ending in dict.fromkeys((gz, "", ".gz"))]
    return next((file for file in candidates if file.is_file() and not file.is_symlink()), None)
