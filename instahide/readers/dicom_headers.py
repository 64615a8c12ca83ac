"""Where the slices of DICOM files lie in space, read from headers alone.

A file is a slice of a volume when it names a series (SeriesInstanceUID) and a place: position and orientation
of its first pixel's corner (PS3.3 C.7.6.2), or one for each frame (enhanced objects, C.7.6.16). Files
of one series with one orientation and size belong together. Their order is that of

    position · (row direction × column direction)

in millimetres, which neither file names nor instance numbers give reliably. From that order follow the
faults that are reported: two slices in one place, and places that are skipped.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import dicom
from .limits import Limits, UnreadableError, open_regular

HEAD_BYTES = 256 * 1024
"""Read of each file at first; a longer header costs a second look at the whole file."""
_TAGS = (
    "Modality",
    "PatientID",
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
)
MAX_FRAMES = 100_000


@dataclass(frozen=True)
class SliceHeader:
    """Where one file's frames lie: directions of row and column, each frame's distance along their normal."""

    series: str = field(repr=False)
    orientation: tuple[float, ...]
    distances: tuple[float, ...]
    size: tuple[int, int]
    num_bytes: int
    subject: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Spacing:
    """What is odd about the distances of a series: places skipped, and places taken twice or more."""

    num_missing: int
    num_doubled: int

    @property
    def is_even(self) -> bool:
        """Whether every slice lies as far from the next."""
        return self.num_missing == 0 and self.num_doubled == 0


def read_slice_header(path: Path, limits: Limits) -> SliceHeader | None:
    """Where a file's frames lie; None for what is no grey slice with a place in space, or unreadable."""
    try:
        with dicom.decoding(), os.fdopen(open_regular(path), "rb") as file:
            head = file.read(HEAD_BYTES)
            found = _parse(head)
            if found is None and len(head) == HEAD_BYTES and dicom.looks_like_dicom(head[:132]):
                found = _parse(head + file.read(max(0, limits.max_file_bytes - HEAD_BYTES)))
            return found
    except UnreadableError:
        return None  # decoding it says why


def spacing_of(distances: Iterable[float]) -> Spacing:
    """The faults of sorted ``distances``. The usual step is the lower median; half as much again is a gap."""
    steps = np.diff(np.fromiter(distances, dtype=np.float64))
    if not len(steps):
        return Spacing(0, 0)
    doubled = steps < 1e-3  # mm
    usual = float(np.quantile(steps[~doubled], 0.5, method="lower")) if (~doubled).any() else 0.0
    gaps = steps[steps > 1.5 * usual] if usual else steps[:0]
    return Spacing(int(np.rint(gaps / usual - 1).sum()) if usual else 0, int(doubled.sum()))


def frame_groups(dataset: Any, index: int) -> list[Any]:
    """The functional groups that speak of frame ``index`` of an enhanced object, the frame's own first."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    return [*own[index : index + 1], *shared[:1]]


def of_frame(groups: Sequence[Any], sequence: str) -> Any:
    """The item of a functional group such as ``PlanePositionSequence``, or None."""
    for group in groups:
        items = group.get(sequence)
        if items:
            return items[0]
    return None


def _parse(data: bytes) -> SliceHeader | None:
    import pydicom

    if not dicom.looks_like_dicom(data[:132]) or dicom.DEFLATED_SYNTAX in data:
        return None
    dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=list(_TAGS))
    if str(dataset.get("Modality", "")) in dicom.NOT_PICTURES or not dataset.get("SeriesInstanceUID"):
        return None
    if str(dataset.get("PhotometricInterpretation", "")) not in dicom.GREY:
        return None
    frames = dicom.num_frames(dataset)
    if not 1 <= frames <= MAX_FRAMES:
        return None
    if dataset.get("ImagePositionPatient") and frames == 1:
        places = [(dataset.ImageOrientationPatient, dataset.ImagePositionPatient)]
    else:
        places = [_frame_place(dataset, index) for index in range(frames)]
    orientations = {tuple(round(float(x), 4) for x in orientation) for orientation, _ in places}
    if len(orientations) != 1:
        return None
    orientation = orientations.pop()
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = (float(np.linalg.norm(row)), float(np.linalg.norm(column)))
    if len(orientation) != 6 or not np.allclose([*lengths, row @ column], [1, 1, 0], atol=1e-2):
        return None
    positions = np.array([[float(x) for x in position] for _, position in places])
    if positions.shape != (frames, 3) or not np.isfinite(positions).all():
        return None
    size = (int(dataset.Rows), int(dataset.Columns))
    return SliceHeader(
        series=str(dataset.SeriesInstanceUID),
        orientation=orientation,
        distances=tuple((positions @ np.cross(row, column)).tolist()),
        size=size,
        num_bytes=frames * size[0] * size[1] * (int(dataset.BitsAllocated) // 8 or 1),
        subject=dicom.subject_of(dataset),
    )


def _frame_place(dataset: Any, index: int) -> tuple[Any, Any]:
    """(orientation, position) of a frame; UnreadableError where the file does not say."""
    groups = frame_groups(dataset, index)
    plane, place = of_frame(groups, "PlaneOrientationSequence"), of_frame(groups, "PlanePositionSequence")
    if plane is None or place is None:
        raise UnreadableError("frames without a place in space")
    return plane.ImageOrientationPatient, place.ImagePositionPatient
