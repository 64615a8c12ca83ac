"""What a reader finds before any pixel is decoded: which splits, which files, which labels.

Every format becomes a ``Catalogue`` of parts, one part a split. Pictures in files are decoded
one by one by whoever needs them (``load_images`` keeps the pixels, ``inspect_dataset`` only
their fingerprints); arrays are opened whole, memory-mapped where they are large.

Axes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .limits import QuarantinedFile
from .slicing import Slicing

Split = Literal["train", "test", "val"]
WHOLE = "all"
"""The name of the only part of a data set that has no splits."""

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
"""What people call their splits, in lower case."""


@dataclass(frozen=True, slots=True)
class Item:
    """One picture file: where it is, what to call it, its class index and subject if known."""

    path: Path
    name: str
    label: int | None = None
    # Who the picture shows. Kept out of every repr: it must not reach a log.
    subject: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class FilePart:
    """A split made of pictures, DICOM files or volumes."""

    split: str
    items: tuple[Item, ...]

    def image_name(self, index: int) -> str:
        return self.items[index].name


@dataclass(frozen=True)
class ArrayPart:
    """A split stored as one array; ``open`` gives (N, H, W), (N, H, W, C) or (N, C, H, W)."""

    split: str
    open: Callable[[], NDArray[Any]]
    labels: NDArray[Any] | None = None
    subjects: tuple[str, ...] | None = field(default=None, repr=False)

    def image_name(self, index: int) -> str:
        return f"{self.split}[{index}]"


Part = FilePart | ArrayPart


@dataclass(frozen=True)
class Catalogue:
    """A data set as found on disk; ``format`` is shown to people, ``slicing`` says what volumes become."""

    format: str
    parts: tuple[Part, ...]
    class_names: tuple[str, ...] | None
    quarantined: tuple[QuarantinedFile, ...] = ()
    num_bytes: int = 0
    slicing: Slicing = field(default_factory=Slicing)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(part.split for part in self.parts)


def number_labels(labels: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Class index of each label text, and the class names in that order.

    Labels that are all whole numbers below 65,536 *are* the class indices, so that two sites
    with different classes present agree; any other labels are numbered in code point order.
    """
    distinct = sorted(set(labels))
    if all(
        text.isascii() and text.isdigit() and int(text[:6]) < 65_536 and len(text) < 6 for text in distinct
    ):
        count = max((int(text) for text in distinct), default=-1) + 1
        return {text: int(text) for text in distinct}, tuple(str(index) for index in range(count))
    return {text: index for index, text in enumerate(distinct)}, tuple(distinct)


def label_array(items: tuple[Item, ...]) -> NDArray[np.int64] | None:
    """(N,) class indices, or None when the files carry no labels."""
    if not items or any(item.label is None for item in items):
        return None
    return np.array([item.label for item in items], dtype=np.int64)
