"""Readers: any common form of labelled pictures to one checked ``ImageSet``.

    load_images("chest/")                    folder/LABEL/*.png, folder/{train,test,val}/LABEL/*, or flat
    load_images("chest.npz", split="test")   x_train/y_train, MedMNIST keys, x/y, images/labels
    load_images("scans.npy")                 memory-mapped when large, labels beside it
    load_images("mnist/")                    idx files, .gz too
    load_images("cifar-10-batches-py/")      python or binary batches
    load_images("manifest.csv")              path,label[,subject_id][,split]; or a folder holding one
    load_images("studies/")                  DICOM files, by class folder or CSV (extra ``dicom``)
    load_images("volumes/")                  .nii and .nii.gz, a picture a slice (extra ``nifti``)
    load_images("heart.csv")                 numbers with gaps, columns.toml beside them (``readers.tabular``)

Safe by default: pictures only in listed formats, sizes checked before memory is taken, no link
followed, no pickle, nothing outside the folder. Files that cannot be used are set aside with a
reason; when they are more than 1 % of all, reading stops.

Slices of one DICOM series come in the order of their places and under one window; ``volumes.toml`` in the
data folder says which slices of volumes are taken and how (``readers.slicing``).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InvalidInputError
from ..images import ImageSet
from .assemble import assemble_array, assemble_files
from .catalogue import ArrayPart, Catalogue, Part, Split
from .formats import find_catalogue
from .limits import Limits, QuarantinedFile, check_bad_fraction
from .presentation import Fit, Presentation
from .slicing import Slicing

__all__ = [
    "Limits",
    "QuarantineWarning",
    "QuarantinedFile",
    "Reading",
    "Slicing",
    "VolumeWarning",
    "load_images",
    "read_images",
]

DEFAULT_LIMITS = Limits()
MAX_BAD_FRACTION = 0.01


class QuarantineWarning(UserWarning):
    """Some files were set aside; the data set is smaller than its folder."""


class VolumeWarning(UserWarning):
    """Something is odd about the slices of a volume: some are missing, or lie in one place."""


@dataclass(frozen=True)
class Reading:
    """What ``read_images`` hands back: the images, and what was left out of them."""

    images: ImageSet
    format: str
    split: str
    quarantined: tuple[QuarantinedFile, ...]
    notes: tuple[str, ...] = ()


def load_images(
    path: str | os.PathLike[str],
    *,
    split: Split | None = None,
    image_size: int | None = None,
    fit: Fit = "crop",
    channels: int | None = None,
    bit_depth: int = 16,
    class_names: Sequence[str] | None = None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    slicing: Slicing | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> ImageSet:
    """Read the images of ``path``, whatever common form they have.

    Args:
        path: a file or folder; the format is found from names and content.
        split: ``"train"``, ``"test"`` or ``"val"``; by default the training split where there are
            splits, else everything.
        image_size: S brings every picture to S×S pixels; by default sizes must agree.
        fit: with ``image_size``, ``"crop"`` (largest centred square) or ``"pad"`` (whole, on black).
        channels: 1 or 3 converts; by default grey and colour must not be mixed.
        bit_depth: bits in use in 16-bit pictures and arrays, scaled over their full range to 8.
        class_names: the K names in the order of their indices, where sites must agree; by default
            those found, in code point order.
        max_bad_fraction: stop when more than this share of the files cannot be used.
        slicing: how volumes become pictures, instead of what ``volumes.toml`` says.
        limits: caps on sizes, checked before memory is taken.

    Returns:
        An ImageSet; ``subject_ids`` come from the manifest or DICOM PatientID where there are any. All
        slices of a volume have one subject.

    Raises:
        InvalidInputError: no images, no such split, pictures that differ, or too many bad files.
        IntegrityError: an array file is corrupt, truncated or holds pickled objects.
        RefusedError: a size above a cap, or a path that leaves the data folder.

    Warns:
        QuarantineWarning: some files were set aside; ``read_images`` hands the list back instead.
        VolumeWarning: slices of a volume are missing or doubled; ``read_images`` hands the notes back.
    """
    reading = read_images(
        path,
        split=split,
        image_size=image_size,
        fit=fit,
        channels=channels,
        bit_depth=bit_depth,
        class_names=class_names,
        max_bad_fraction=max_bad_fraction,
        slicing=slicing,
        limits=limits,
    )
    if reading.quarantined:
        first = reading.quarantined[0]
        warnings.warn(
            f"{len(reading.quarantined)} files set aside, such as {first.name}: {first.reason}",
            QuarantineWarning,
            stacklevel=2,
        )
    for note in reading.notes:
        warnings.warn(note, VolumeWarning, stacklevel=2)
    return reading.images


def read_images(
    path: str | os.PathLike[str],
    *,
    split: Split | None = None,
    image_size: int | None = None,
    fit: Fit = "crop",
    channels: int | None = None,
    bit_depth: int = 16,
    class_names: Sequence[str] | None = None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    slicing: Slicing | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Reading:
    """``load_images`` with the format, the split taken and the list of files set aside."""
    how = Presentation(image_size=image_size, fit=fit, channels=channels, bit_depth=bit_depth)
    check_fraction(max_bad_fraction)
    catalogue = find_catalogue(Path(path), limits)
    if slicing is not None:
        catalogue = replace(catalogue, slicing=slicing)
    part = _choose(catalogue, split)
    if catalogue.format == "table of numbers" and (how.image_size is not None or how.channels == 3):
        raise InvalidInputError(
            "rows of a table have no size or colour to change", hint="leave out image_size and channels"
        )
    notes: tuple[str, ...]
    if isinstance(part, ArrayPart):
        images: ImageSet | None = assemble_array(part, catalogue.class_names, how)
        quarantined, notes = catalogue.quarantined, ()
    else:
        images, bad, notes = assemble_files(part, catalogue, how, limits)
        quarantined = tuple(sorted((*catalogue.quarantined, *bad)))
        check_bad_fraction(quarantined, len(part.items) + len(catalogue.quarantined), max_bad_fraction)
    if images is None or len(images) == 0:
        why = "; drop-empty left no slice" if catalogue.slicing.drop_empty and not quarantined else ""
        raise InvalidInputError(f"the {part.split} split holds no images{why}", hint="choose another split")
    if class_names is not None:
        images = _renumbered(images, class_names)
    return Reading(images, catalogue.format, part.split, quarantined, notes)


def check_fraction(max_bad_fraction: float) -> None:
    """Raise InvalidInputError unless 0 <= max_bad_fraction <= 1."""
    if not 0 <= max_bad_fraction <= 1:
        raise InvalidInputError(f"max_bad_fraction is {max_bad_fraction}", hint="give a share from 0 to 1")


def _choose(catalogue: Catalogue, split: str | None) -> Part:
    """The part asked for; without a wish the training split, or the only part."""
    if split not in (None, "train", "test", "val"):
        raise InvalidInputError(f"split is {split!r}", hint='choose "train", "test" or "val"')
    parts = {part.split: part for part in catalogue.parts}
    wanted = split or ("train" if "train" in parts or len(parts) != 1 else next(iter(parts)))
    if wanted not in parts:
        found = ", ".join(name for name in parts if name != "all") or "none"
        raise InvalidInputError(
            f"there is no {wanted} split; splits found: {found}",
            hint="leave split out to take everything" if "all" in parts else f"choose one of: {found}",
        )
    return parts[wanted]


def _renumbered(images: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """The same images with labels counted in the order of ``class_names``."""
    names = tuple(str(name) for name in class_names)
    if images.labels is None or images.class_names is None:
        raise InvalidInputError("class_names given for images without labels", hint="leave class_names out")
    if len(set(names)) != len(names):
        raise InvalidInputError("class_names holds a name twice", hint="give each class once")
    place = {name: index for index, name in enumerate(names)}
    present = [images.class_names[label] for label in np.unique(images.labels)]
    unknown = [name for name in present if name not in place]
    if unknown:
        raise InvalidInputError(
            f"class {unknown[0]!r} is not among the classes expected: {', '.join(names)}",
            hint=f"the data holds: {', '.join(present)}",
        )
    table = np.array([place.get(name, 0) for name in images.class_names], dtype=np.int64)
    return ImageSet(images.images, table[images.labels], names, images.subject_ids)
