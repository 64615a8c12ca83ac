"""CIFAR-10 and CIFAR-100 as distributed: python batches or binary batches, in a folder or one by one.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). An image is 3,072
bytes, channels first. Python batches are dictionaries with ``data`` (N, 3072) and ``labels`` or
``fine_labels``, read without unpickling (see ``plain_pickle``). Binary records are
``label, image`` (CIFAR-10) or ``coarse label, fine label, image`` (CIFAR-100; fine is taken).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from .catalogue import ArrayPart, Catalogue
from .limits import Limits, UnreadableError, display_name, read_bytes, reading
from .plain_pickle import load_plain_pickle

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
TEN, HUNDRED = 10, 100
BATCH_NAMES = re.compile(r"^(data_batch_\d+|test_batch)(\.bin)?$|^(train|test)\.bin$")
META_FILES = ("batches.meta.txt", "fine_label_names.txt", "batches.meta", "meta")


def find_cifar_batches(folder: Path) -> list[Path]:
    """The batch files of a folder in the order of their numbers; [] when it is no CIFAR folder."""
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    named = [path for name, path in files.items() if BATCH_NAMES.match(name)]
    if not named and {"train", "test", "meta"} <= files.keys():
        named = [files["train"], files["test"]]
    return sorted(named, key=lambda path: (len(path.name), path.name))


def read_cifar(batches: list[Path], limits: Limits) -> Catalogue:
    """The catalogue of CIFAR batches; ``train`` is all training batches one after the other.

    Raises:
        InvalidInputError: python and binary batches side by side.
        IntegrityError: wrong sizes, labels out of range, or a pickle that holds anything but arrays.
    """
    if len({path.suffix for path in batches}) > 1:
        raise InvalidInputError("python and binary batches in one folder", hint="keep one of the two kinds")
    groups = {"train": [p for p in batches if not _is_test(p)], "test": [p for p in batches if _is_test(p)]}
    num_classes = TEN
    parts = []
    for split, files in groups.items():
        if not files:
            continue
        read = [_read_batch(path, limits) for path in files]
        num_classes = max(num_classes, *(count for _, _, count in read))
        images = np.concatenate([images for images, _, _ in read])
        parts.append(ArrayPart(split, _holder(images), np.concatenate([labels for _, labels, _ in read])))
    names = _class_names(batches[0].parent, num_classes, limits)
    size = sum(path.stat().st_size for path in batches)
    return Catalogue(f"CIFAR-{num_classes} batches", tuple(parts), names, (), size)


_Batch = tuple[NDArray[np.uint8], NDArray[np.int64], int]
"""Images (N, 3, 32, 32), labels (N,), and the number of classes of the format."""


def _holder(images: NDArray[np.uint8]) -> Any:
    return lambda: images


def _is_test(path: Path) -> bool:
    return path.name.startswith("test")


def _read_batch(path: Path, limits: Limits) -> _Batch:
    with reading(path, "a CIFAR batch"):
        data = read_bytes(path, limits)
        images, labels, count = _binary(path, data) if path.suffix == ".bin" else _python(data)
        if len(images) != len(labels):
            raise UnreadableError(f"{len(labels)} labels for {len(images)} images")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < count:
            raise UnreadableError(f"labels from {labels.min()} to {labels.max()} for {count} classes")
    return images, labels, count


def _binary(path: Path, data: bytes) -> _Batch:
    """Records of CIFAR-100 when the file is named train.bin or test.bin, else of CIFAR-10."""
    count = HUNDRED if path.name in ("train.bin", "test.bin") else TEN
    width = PIXELS + (2 if count == HUNDRED else 1)
    if len(data) % width:
        raise UnreadableError(f"{len(data):,} bytes are not a whole number of {width}-byte records")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, width)
    images = records[:, -PIXELS:].reshape(-1, *SHAPE)
    return images, records[:, width - PIXELS - 1].astype(np.int64), count


def _python(data: bytes) -> _Batch:
    batch = load_plain_pickle(data)
    if not isinstance(batch, dict):
        raise UnreadableError("no dictionary in the batch")
    pixels = _entry(batch, "data")
    fine = _entry(batch, "fine_labels")
    labels = fine if fine is not None else _entry(batch, "labels")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise UnreadableError(f"no array of N x {PIXELS} bytes under 'data'")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise UnreadableError("no list of whole numbers under 'labels'")
    numbers = np.array(labels, dtype=np.int64)
    return pixels.reshape(-1, *SHAPE), numbers, TEN if fine is None else HUNDRED


def _entry(batch: dict[Any, Any], key: str) -> Any:
    return batch.get(key.encode("ascii"), batch.get(key))


def _class_names(folder: Path, count: int, limits: Limits) -> tuple[str, ...]:
    """Names from the meta file beside the batches, or the numbers when it is missing."""
    for file in (folder / name for name in META_FILES):
        if not file.is_file() or file.is_symlink():
            continue
        with reading(file, "a list of CIFAR class names"):
            data = read_bytes(file, limits)
            if file.suffix == ".txt":
                names = data.decode("utf-8").split()
            else:
                meta = load_plain_pickle(data)
                found = _entry(meta, "fine_label_names") or _entry(meta, "label_names") or []
                names = [name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in found]
        if len(names) == count:
            return tuple(display_name(name) for name in names)
    return tuple(str(index) for index in range(count))
