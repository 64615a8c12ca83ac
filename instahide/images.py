"""ImageSet: the one form in which plain images enter the toolkit.

Axes: N images, C channels (1 or 3), H rows, W columns.

Images are 8-bit and stay 8-bit until the encoder's single pass over them, so a data set
costs N·C·H·W bytes and no more; a memory-mapped array is kept memory-mapped. All checks
happen here, at construction, so nothing behind this door looks at shapes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInputError

TOO_FEW_NUMBERS = (
    "rows of a table cannot be hidden by encoding: a sign mask of so few numbers can be guessed, and columns "
    "with few possible values tell which mixture is right (under the published law, from one encoding)"
)
"""Why ``ImageSet.is_table`` and an encoding do not go together."""

MAX_PIXELS_PER_IMAGE = 64_000_000
"""Images above this are refused: 64 megapixels is beyond any radiograph we know of."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Checked 8-bit images with their labels.

    Args:
        images: uint8, ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``; numpy array, memory
            map or torch tensor. Kept as ``(N, C, H, W)``. When both the second and the last
            axis could be channels, the channels-first reading wins.
        labels: integers ``(N,)`` or ``(N, 1)`` in ``0..K-1``, or ``None`` for a public pool.
        class_names: K names; by default ``"0" .. "K-1"``.
        subject_ids: N patient identifiers, used to keep a patient out of two splits; they never
            leave this object in a log, a file or a message.

    Raises:
        InvalidInputError: wrong type, rank, channel count, label range, or lengths that differ.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None
    subject_ids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        images = channels_first(_as_array(self.images, "images"))
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", _checked_labels(self.labels, len(images)))
        object.__setattr__(self, "class_names", _checked_names(self.class_names, self.labels))
        object.__setattr__(self, "subject_ids", _checked_subjects(self.subject_ids, len(images)))

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def __repr__(self) -> str:
        channels, height, width = self.image_shape
        labelled = "no labels" if self.labels is None else f"{self.num_classes} classes"
        return f"ImageSet({len(self)} images of {channels}x{height}x{width}, {labelled})"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return int(channels), int(height), int(width)

    @property
    def is_table(self) -> bool:
        """Rows of a table in the form of ``readers.tabular`` (1 × 2 × d): no picture is two pixels high."""
        return self.image_shape[:2] == (1, 2)

    @property
    def num_classes(self) -> int:
        """K; 0 when there are no labels."""
        return 0 if self.class_names is None else len(self.class_names)

    def subset(self, indices: Sequence[int] | NDArray[Any]) -> ImageSet:
        """The images at ``indices`` (integers or a boolean array), with the same class names."""
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen)
        subjects = None if self.subject_ids is None else tuple(self.subject_ids[i] for i in chosen)
        labels = None if self.labels is None else self.labels[chosen]
        return ImageSet(self.images[chosen], labels, self.class_names, subjects)


def channels_first(images: NDArray[Any]) -> NDArray[np.uint8]:
    """A view of ``images`` as (N, C, H, W), C in {1, 3}; raises InvalidInputError otherwise."""
    if images.dtype != np.uint8:
        raise InvalidInputError(
            f"images are {images.dtype}, not uint8{_non_finite_note(images)}",
            hint="give 8-bit pixels 0..255; for floats in [0, 1] use (255 * x).round().astype('uint8')",
        )
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4:
        raise InvalidInputError(
            f"images have shape {images.shape}; expected (N, H, W), (N, H, W, C) or (N, C, H, W)",
            hint="stack images of one size into one array",
        )
    if images.shape[1] not in (1, 3):
        if images.shape[3] not in (1, 3):
            raise InvalidInputError(
                f"images of shape {images.shape} have neither 1 nor 3 channels",
                hint="drop an alpha channel; store grey images as (N, H, W)",
            )
        images = np.moveaxis(images, 3, 1)
    if 0 in images.shape[1:]:
        raise InvalidInputError(f"images of shape {images.shape} have no pixels", hint="check the file")
    if int(np.prod(images.shape[1:])) > MAX_PIXELS_PER_IMAGE:
        raise InvalidInputError(
            f"images of shape {images.shape[1:]} exceed {MAX_PIXELS_PER_IMAGE:,} values each",
            hint="resize the images first",
        )
    return images


def _as_array(values: Any, what: str) -> NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "detach"):  # a torch tensor, without importing torch here
        return np.asarray(values.detach().cpu().numpy())
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InvalidInputError(
            f"{what} are not one rectangular array: {error}", hint="give images of one size"
        ) from error


def _non_finite_note(images: NDArray[Any]) -> str:
    if not np.issubdtype(images.dtype, np.floating):
        return ""
    bad = int(np.size(images) - np.count_nonzero(np.isfinite(images)))
    return f" ({bad} values are NaN or infinite)" if bad else ""


def _checked_labels(labels: Any, num_images: int) -> NDArray[np.int64] | None:
    if labels is None:
        return None
    array = _as_array(labels, "labels")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) != num_images:
        raise InvalidInputError(
            f"labels have shape {array.shape} for {num_images} images", hint="give one integer per image"
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise InvalidInputError(f"labels are {array.dtype}, not integers", hint="number classes from 0")
    if array.size and int(array.min()) < 0:
        raise InvalidInputError(f"label {int(array.min())} is negative", hint="number classes from 0")
    return array.astype(np.int64)


def _checked_names(names: Any, labels: NDArray[np.int64] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None if names is None else tuple(str(name) for name in names)
    largest = int(labels.max()) if labels.size else -1
    if names is None:
        if largest >= 65_536:
            raise InvalidInputError(f"label {largest} is implausibly large", hint="number classes from 0")
        return tuple(str(i) for i in range(largest + 1))
    checked = tuple(str(name) for name in names)
    if largest >= len(checked):
        raise InvalidInputError(
            f"label {largest} is out of range for {len(checked)} class names",
            hint="labels run from 0 to the number of classes minus 1",
        )
    return checked


def _checked_subjects(subjects: Any, num_images: int) -> tuple[str, ...] | None:
    if subjects is None:
        return None
    checked = tuple(str(subject) for subject in subjects)
    if len(checked) != num_images:
        raise InvalidInputError(
            f"{len(checked)} subject ids for {num_images} images", hint="give one subject id per image"
        )
    return checked
