"""One DICOM series as pictures: in the order of their places, under one window (extra ``dicom``).

    values = slope · stored + intercept    a file's or a frame's own (in PET they differ from slice to slice)
    grey   = one range for the series      a given window; else what all files agree on; else percentiles

then the inversion of MONOCHROME1, as :mod:`.dicom` does for one file. As acquired, a picture is a file's
own and keeps its name. Cut along another axis, the slices are stacked first, which needs all of them at even
steps. A file that cannot be read is set aside alone, and leaves a gap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import dicom, grey
from .catalogue import Item
from .dicom_headers import SliceHeader, Spacing, frame_groups, of_frame, spacing_of
from .limits import Limits, QuarantinedFile, UnreadableError, read_bytes
from .slicing import Slicing
from .volume import LPS_TO_RAS, axis_of_slices, planes, to_canonical

Picture = tuple[Item, NDArray[np.uint8]]


@dataclass(frozen=True)
class Series:
    """Files of one series, orientation, size and class, in the order they were found."""

    members: tuple[tuple[Item, SliceHeader], ...]

    @property
    def num_slices(self) -> int:
        """Frames of all files."""
        return sum(len(header.distances) for _, header in self.members)

    @property
    def num_bytes(self) -> int:
        """Of all pixels as stored."""
        return sum(header.num_bytes for _, header in self.members)

    @property
    def spacing(self) -> Spacing:
        """What is odd about the places of its slices."""
        return spacing_of(sorted(d for _, header in self.members for d in header.distances))

    @property
    def affine(self) -> NDArray[np.float64]:
        """(3, 3) directions of column, row and slice number towards right, front and head."""
        orientation = np.array(self.members[0][1].orientation)
        row, column = orientation[:3], orientation[3:]
        directions: NDArray[np.float64] = np.stack([row, column, np.cross(row, column)], axis=1)
        return np.asarray(LPS_TO_RAS @ directions)

    @property
    def item(self) -> Item:
        """The first file, for which the whole series stands; its subject is that of all slices."""
        item, header = self.members[0]
        return replace(item, subject=item.subject or header.subject or f"series:{item.name}")


@dataclass(frozen=True)
class _Frame:
    """One slice: its name, place, stored values and the elements that say what they mean."""

    item: Item
    distance: float
    stored: NDArray[Any]
    elements: Any


def decode_series(
    series: Series, limits: Limits, slicing: Slicing
) -> tuple[list[Picture], list[QuarantinedFile]]:
    """The pictures of a series in order, and its files that cannot be read.

    Raises:
        UnreadableError: nothing can be read, no slice is asked for, or the slices cannot be stacked.
    """
    frames: list[_Frame] = []
    bad: list[QuarantinedFile] = []
    for item, header in series.members:
        try:
            frames += _frames(replace(item, subject=series.item.subject), header, limits)
        except UnreadableError as error:
            bad.append(QuarantinedFile(item.name, error.reason))
    if not frames:
        return [], bad
    frames.sort(key=lambda frame: frame.distance)  # stable: slices in one place keep the order of their files
    if slicing.axis is None:
        wanted = [frames[number] for number in slicing.chosen(len(frames))]
        shown = _shown(frames, slicing)
        return [(frame.item, shown(frame)) for frame in wanted], bad
    return _cut(series, frames, slicing), bad


def _frames(item: Item, header: SliceHeader, limits: Limits) -> list[_Frame]:
    with dicom.decoding():
        dataset = dicom.parse(read_bytes(item.path, limits), limits)
        stored = dicom.stored_values(dataset)
        count = len(header.distances)
        if stored.shape != ((count, *header.size) if count > 1 else header.size):
            raise UnreadableError(f"grey image of shape {stored.shape} is not supported")
        pictures = stored if count > 1 else stored[None]
        frames = []
        for number, distance in enumerate(header.distances):
            name = f"{item.name} frame {number + 1}" if count > 1 else item.name
            elements = _elements(dataset, number)
            # What cannot be used is found here, where it costs one file and not the series.
            dicom.own_window(elements)
            if _scale(elements) is None or stored.dtype.kind == "f":
                dicom.rescaled(pictures[number], elements)
            frames.append(_Frame(replace(item, name=name), distance, pictures[number], elements))
        return frames


_COPIED = (
    "PhotometricInterpretation",
    "PixelPaddingValue",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "BitsStored",
    "PixelRepresentation",
)


def _elements(dataset: Any, number: int) -> Any:
    """What says how a frame's stored values are to be shown; a frame's own groups go before the file's."""
    from pydicom.dataset import Dataset

    groups = frame_groups(dataset, number)
    places = [
        of_frame(groups, "PixelValueTransformationSequence"),
        of_frame(groups, "FrameVOILUTSequence"),
        dataset,
    ]
    elements = Dataset()
    for name in _COPIED:
        found = next((place[name] for place in places if place is not None and name in place), None)
        if found is not None:
            elements.add(found)
    return elements


def _values(frame: _Frame) -> NDArray[np.float64]:
    return dicom.rescaled(frame.stored, frame.elements)


def _shown(frames: list[_Frame], slicing: Slicing) -> Callable[[_Frame], NDArray[np.uint8]]:
    """What makes a picture of a frame: the same for every frame of the series."""
    windows = {dicom.own_window(frame.elements) for frame in frames}
    if slicing.window is None and slicing.percentiles is None and len(windows) == 1 and windows != {None}:
        return lambda frame: dicom.upright(
            dicom.by_own_window(_values(frame), frame.stored, frame.elements), frame.elements
        )
    low, high = slicing.window or _range(frames, slicing.percentiles or grey.PERCENTILES)
    return lambda frame: dicom.upright(grey.spread(_values(frame), low, high), frame.elements)


def _range(frames: list[_Frame], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Percentiles of all values of the series but the padding.

    Where every slice has one slope and intercept, the stored values are enough (and a quarter of the memory).
    """
    scales = {_scale(frame.elements) for frame in frames}
    scale = scales.pop()
    if not scales and scale is not None and scale[0] > 0:
        stored = [dicom.without_padding(f.stored, f.stored, f.elements) for f in frames]
        low, high = grey.percentile_range(np.concatenate(stored), percentiles)
        return low * scale[0] + scale[1], high * scale[0] + scale[1]
    values = [dicom.without_padding(_values(f).astype(np.float32), f.stored, f.elements) for f in frames]
    return grey.percentile_range(np.concatenate(values), percentiles)


def _scale(elements: Any) -> tuple[float, float] | None:
    """(slope, intercept); None for a table."""
    if "ModalityLUTSequence" in elements:
        return None
    return float(elements.get("RescaleSlope", 1)), float(elements.get("RescaleIntercept", 0))


def _cut(series: Series, frames: list[_Frame], slicing: Slicing) -> list[Picture]:
    """The series stacked and cut along the axis asked for."""
    assert slicing.axis is not None
    if axis_of_slices(series.affine) != slicing.axis and not spacing_of(f.distance for f in frames).is_even:
        raise UnreadableError(
            f"slices are missing or doubled: the series cannot be cut into {slicing.axis} slices"
        )
    shown = _shown(frames, slicing)
    stack = np.stack([shown(frame) for frame in frames])  # (K, J, I)
    cut = planes(to_canonical(stack.transpose(2, 1, 0), series.affine), slicing.axis)
    item = series.item
    return [
        (replace(item, name=f"{item.name} {slicing.axis} {number}"), np.ascontiguousarray(cut[number]))
        for number in slicing.chosen(len(cut))
    ]
