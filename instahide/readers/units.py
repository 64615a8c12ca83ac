"""What is decoded together: a picture, a volume in one file, or the files of one DICOM series.

Planning reads headers only. It finds which files are slices of one series, how many pictures a volume gives
at most, and what is odd about them; decoding one unit gives pictures with their names and subjects, and
the files set aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from . import dicom, nifti, picture
from .catalogue import Item
from .dicom_headers import SliceHeader, read_slice_header
from .dicom_series import Series, decode_series
from .limits import Limits, QuarantinedFile, UnreadableError, quiet_decoders, read_bytes
from .slicing import Slicing

NEAR_CONSTANT_STD = 1.0
"""A picture whose pixels spread less than this (standard deviation, levels of 255) shows nothing."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels (H, W) or (H, W, 3), the file's own depth, and the subject it names (DICOM, volumes)."""

    pixels: NDArray[np.uint8]
    depth: str
    subject: str | None = field(default=None, repr=False)


Outcome = tuple[Item, Decoded | QuarantinedFile]


@dataclass(frozen=True)
class Unit:
    """One thing to decode: its files, the pictures it gives at most, and how it is done."""

    items: tuple[Item, ...]
    num_pictures: int
    decode: Callable[[], list[Outcome]]
    is_volume: bool = False


@dataclass(frozen=True)
class Plan:
    """All units of a split in order, and what a person should know about its volumes."""

    units: tuple[Unit, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_pictures(self) -> int:
        """At most."""
        return sum(unit.num_pictures for unit in self.units)

    @property
    def num_volumes(self) -> int:
        """Volumes and series."""
        return sum(unit.is_volume for unit in self.units)


def plan_units(items: Sequence[Item], limits: Limits, bit_depth: int, slicing: Slicing) -> Plan:
    """Sort the files of a split into units; a series stands where its first file does.

    Raises:
        InvalidInputError: volumes, and the extra that reads them is not installed.
    """
    units: list[Unit] = []
    members: dict[tuple[object, ...], list[tuple[Item, SliceHeader]]] = {}
    places: dict[tuple[object, ...], int] = {}
    without_orientation = 0
    with quiet_decoders():
        for item in items:
            if nifti.is_nifti_name(item.path.name):
                nifti.require_nibabel()
                unit, is_oriented = _volume(item, limits, slicing)
                without_orientation += not is_oriented
                units.append(unit)
                continue
            header = _slice_header(item, limits)
            if header is None:
                units.append(Unit((item,), 1, partial(_one_picture, item, limits, bit_depth)))
                continue
            key = (header.series, header.orientation, header.size, item.label, item.subject)
            if key not in members:
                places[key] = len(units)
                units.append(Unit((), 0, list))  # its files are not all known yet
            members.setdefault(key, []).append((item, header))
    found = [Series(tuple(group)) for group in members.values()]
    for place, series in zip(places.values(), found, strict=True):
        units[place] = _series_unit(series, limits, bit_depth, slicing)
    notes = [*_notes(found)]
    if without_orientation:
        # NIfTI's method 1: the first axis is taken to run to the left, as in Analyze files.
        notes.append(
            f"volumes without an orientation, taken to run from right, back and feet: {without_orientation:,}"
        )
    return Plan(tuple(units), tuple(notes))


def _slice_header(item: Item, limits: Limits) -> SliceHeader | None:
    """None for what cannot be a slice; pictures by name are not opened for it."""
    if item.path.suffix.lower() in picture.SUFFIXES:
        return None
    try:
        import pydicom  # noqa: F401
    except ImportError:
        return None  # decoding it names the extra
    return read_slice_header(item.path, limits)


def _one_picture(item: Item, limits: Limits, bit_depth: int) -> list[Outcome]:
    """Decode by content: the DICM mark makes a DICOM file, everything else must be a picture."""
    try:
        data = read_bytes(item.path, limits)
        if item.path.suffix.lower() in dicom.SUFFIXES or dicom.looks_like_dicom(data[:132]):
            dicom.require_pydicom()
            pixels, subject = dicom.decode_dicom(data, limits)
            return [(item, Decoded(pixels, "dicom", subject if item.subject is None else item.subject))]
        pixels, depth = picture.decode_picture(data, limits, bit_depth)
        return [(item, Decoded(pixels, depth, item.subject))]
    except UnreadableError as error:
        return [(item, QuarantinedFile(item.name, error.reason))]


def _volume(item: Item, limits: Limits, slicing: Slicing) -> tuple[Unit, bool]:
    """The unit of a NIfTI file, and whether it states an orientation (if it can be read at all)."""

    def decode() -> list[Outcome]:
        subject = item.subject or nifti.subject_of(item.name)
        try:
            pictures = nifti.read_pictures(item.path, limits, slicing)
            if slicing.drop_empty:
                pictures = [(number, pixels) for number, pixels in pictures if shows_something(pixels)]
            axis = slicing.axis or "axial"
            return [
                (replace(item, name=f"{item.name} {axis} {number}"), Decoded(pixels, "nifti", subject))
                for number, pixels in pictures
            ]
        except UnreadableError as error:
            return [(item, QuarantinedFile(item.name, error.reason))]

    try:
        header = nifti.read_header(item.path, limits)
        return Unit((item,), header.num_slices(slicing), decode, True), header.has_orientation
    except UnreadableError:
        return Unit((item,), 0, decode, True), True


def _series_unit(series: Series, limits: Limits, bit_depth: int, slicing: Slicing) -> Unit:
    items = tuple(item for item, _ in series.members)
    if series.num_slices == 1 and slicing == Slicing():
        return Unit(items, 1, partial(_one_picture, items[0], limits, bit_depth))

    def decode() -> list[Outcome]:
        try:
            if series.num_bytes > limits.max_volume_bytes:
                raise UnreadableError(
                    f"a series of {series.num_bytes:,} bytes, above the cap of {limits.max_volume_bytes:,}"
                )
            with dicom.decoding():
                pictures, bad = decode_series(series, limits, slicing)
        except UnreadableError as error:
            return [(item, QuarantinedFile(item.name, error.reason)) for item in items]
        outcomes: list[Outcome] = [
            (item, Decoded(pixels, "dicom", series.item.subject))
            for item, pixels in pictures
            if not slicing.drop_empty or shows_something(pixels)
        ]
        by_name = {item.name: item for item in items}
        return outcomes + [(by_name[file.name], file) for file in bad]

    # Cut along another axis, a series gives as many pictures as it has rows or columns.
    most = series.num_slices if slicing.axis is None else max(series.num_slices, *series.members[0][1].size)
    return Unit(items, most, decode, True)


def shows_something(pixels: NDArray[np.uint8]) -> bool:
    """Whether a picture is more than nearly constant."""
    return float(pixels.std(dtype=np.float32)) >= NEAR_CONSTANT_STD


def _notes(found: Iterable[Series]) -> list[str]:
    """Faults in the places of slices, each kind once, with the first file of the first series that has it."""
    faults: dict[str, list[tuple[int, str]]] = {
        "missing slices": [],
        "slices where another one lies (copies, echoes or time points?)": [],
    }
    for series in found:
        spacing = series.spacing
        for seen, count in zip(faults.values(), (spacing.num_missing, spacing.num_doubled), strict=True):
            if count:
                seen.append((count, series.item.name))
    return [
        f"{words}: {sum(count for count, _ in seen):,} in {len(seen):,} series, first in that of {seen[0][1]}"
        for words, seen in faults.items()
        if seen
    ]
