"""One split of a catalogue to an ImageSet: decode, bring to one form, stack, check.

Nothing is resized or converted unless asked for; pictures that differ stop the reading with
the two that differ named, because a silent resize is a change of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..images import ImageSet, channels_first
from .catalogue import ArrayPart, Catalogue, FilePart, Item, label_array
from .decode import decode_each
from .limits import Limits, QuarantinedFile, UnreadableError, check_decoded_size
from .presentation import Presentation, present, to_eight_bits
from .units import Decoded, plan_units

CHUNK_IMAGES = 256


def assemble_files(
    part: FilePart, catalogue: Catalogue, how: Presentation, limits: Limits
) -> tuple[ImageSet | None, tuple[QuarantinedFile, ...], tuple[str, ...]]:
    """The ImageSet of a split in files (None when none could be read), what was set aside, and notes.

    Raises:
        InvalidInputError: sizes or channel counts differ; DICOM folders named after patients.
        RefusedError: more memory than the cap.
    """

    def formed(_: Item, decoded: Decoded) -> Decoded:
        return Decoded(present(decoded.pixels, how), decoded.depth, decoded.subject)

    plan = plan_units(part.items, limits, how.bit_depth, catalogue.slicing)
    images: NDArray[np.uint8] | None = None
    kept: list[Item] = []
    subjects: list[str | None] = []
    bad: list[QuarantinedFile] = []
    with closing(decode_each(plan, formed)) as outcomes:
        for item, outcome in outcomes:
            if isinstance(outcome, QuarantinedFile):
                bad.append(outcome)
                continue
            pixels = _with_channel_axis(outcome.pixels)
            if images is None:
                most = plan.num_pictures
                check_decoded_size(most * pixels.nbytes, f"{most} pictures", limits)
                images = np.empty((most, *pixels.shape), dtype=np.uint8)
            if pixels.shape != images.shape[1:]:
                raise _differ(kept[0].name, images.shape[1:], item.name, pixels.shape)
            images[len(kept)] = pixels
            kept.append(item)
            subjects.append(outcome.subject)
    if images is None:
        return None, tuple(bad), plan.notes
    items = tuple(kept)
    labels = label_array(items)
    if labels is not None and catalogue.class_names is not None:
        _refuse_patient_classes([catalogue.class_names[label] for label in labels], subjects)
    names = None if labels is None else catalogue.class_names
    found = ImageSet(images[: len(items)], labels, names, _subject_ids(items, subjects))
    return found, tuple(bad), plan.notes


def _with_channel_axis(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) to (C, H, W), so that no shape is left to guess."""
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)


def assemble_array(part: ArrayPart, class_names: tuple[str, ...] | None, how: Presentation) -> ImageSet:
    """The ImageSet of a split in one array; memory-mapped images stay so unless they must change."""
    images = array_images(part, how.bit_depth)
    if how.changes_pixels and len(images):
        images = np.stack([_with_channel_axis(present(plain(image), how)) for image in images])
    return ImageSet(images, part.labels, None if part.labels is None else class_names, part.subjects)


def array_images(part: ArrayPart, bit_depth: int) -> NDArray[np.uint8]:
    """(N, C, H, W) uint8; 16-bit arrays are scaled a few hundred images at a time."""
    images = part.open()
    if images.dtype == np.uint16:
        scaled = np.empty(images.shape, dtype=np.uint8)
        for start in range(0, len(images), CHUNK_IMAGES):
            rows = slice(start, start + CHUNK_IMAGES)
            try:
                scaled[rows] = to_eight_bits(images[rows], bit_depth)
            except UnreadableError as error:
                raise InvalidInputError(
                    f"{part.split} images: {error.reason}", hint="give the true bit_depth, at most 16"
                ) from None
        images = scaled
    return channels_first(images)


def plain(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(1, H, W) to (H, W) and (3, H, W) to (H, W, 3)."""
    return image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, 2)


def _differ(name: str, first: tuple[int, ...], other_name: str, other: tuple[int, ...]) -> InvalidInputError:
    """The error that names two pictures whose (C, H, W) differ."""
    if first[1:] != other[1:]:
        sizes = [f"{width}x{height}" for _, height, width in (first, other)]
        return InvalidInputError(
            f"pictures differ in size: {name} is {sizes[0]} and {other_name} is {sizes[1]} (width x height)",
            hint="give image_size (--image-size S) to bring all to SxS: the largest centred square, scaled",
        )
    kinds = ["grey" if shape[0] == 1 else "colour" for shape in (first, other)]
    return InvalidInputError(
        f"pictures differ in colour: {name} is {kinds[0]} and {other_name} is {kinds[1]}",
        hint="give channels (--channels): 1 makes all grey, 3 all colour",
    )


def _subject_ids(items: tuple[Item, ...], subjects: Sequence[str | None]) -> tuple[str, ...] | None:
    """One identifier a picture; a picture without one counts as its own subject."""
    if not any(subjects):
        return None
    return tuple(
        subject if subject is not None else unknown_subject(item.name)
        for item, subject in zip(items, subjects, strict=True)
    )


def unknown_subject(name: str) -> str:
    """A stand-in that no other picture shares."""
    return f"unknown:{name}"


def _refuse_patient_classes(labels: Sequence[str], subjects: Sequence[str | None]) -> None:
    """A folder a patient is not a folder a class; the identifiers would become class names."""
    pairs = list(zip(labels, subjects, strict=True))
    if pairs and all(s is not None and s.strip().casefold() == label.casefold() for label, s in pairs):
        raise InvalidInputError(
            "the sub-folders are named after patients, not classes",
            hint="write a manifest.csv with the columns path,label beside them",
        )
