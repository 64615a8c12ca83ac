"""Arrays in ``.npz`` and ``.npy`` files, without pickle and without trusting their headers.

Names understood in an ``.npz`` (letter case ignored; SPLIT is train, test or val):

    x_SPLIT  y_SPLIT            Keras style
    SPLIT_images  SPLIT_labels  MedMNIST, labels (N,) or (N, 1)
    x y | images labels | data labels | data target      no splits
    classes | class_names | label_names                  K texts
    subject_ids | patient_ids, with _SPLIT or SPLIT_     N identifiers, kept in memory only

Beside ``NAME.npy`` the labels are ``NAME_labels.npy`` or ``NAME.labels.npy``, or the same name
with ``images`` → ``labels`` or a leading ``x`` → ``y``. Label texts are numbered in code point
order. Pixels are uint8, or uint16 scaled to 8 bits. Arrays of more than
``Limits.map_above_bytes`` stay on disk as memory maps: every ``.npy``, and the members of an
``.npz`` that are stored uncompressed (``numpy.savez``).
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from .catalogue import WHOLE, ArrayPart, Catalogue, number_labels
from .limits import Limits, display_name, reading
from .npy_format import list_members, read_member, read_npy

SPLIT_WORDS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
IMAGE_WORDS, LABEL_WORDS = ("x", "images", "data"), ("y", "labels", "target")
CLASS_KEYS = ("classes", "class_names", "label_names")
SUBJECT_WORDS = ("subject_ids", "patient_ids", "subject_id", "patient_id")


def read_npz(path: Path, limits: Limits) -> Catalogue:
    """The catalogue of an ``.npz``; labels are read now, images when they are opened.

    Raises:
        InvalidInputError: no array under a name that is understood.
        IntegrityError: not a zip, encrypted, truncated, pickled objects, sizes that disagree.
        RefusedError: more bytes than the cap.
    """
    with reading(path, "an .npz file"):
        members = list_members(path)
        parts = _parts(path, members, limits)
        names = next((_texts(path, members[key], limits) for key in CLASS_KEYS if key in members), None)
        if not parts:
            shown = ", ".join(display_name(name) for name in sorted(members)[:12]) or "nothing"
            raise InvalidInputError(
                f"{display_name(path.name)} has no images under a known name; it holds {shown}",
                hint="use x_train/y_train/x_test/y_test, train_images/train_labels, x/y or images/labels",
            )
    numbered, names = _number_texts(parts, names)
    return Catalogue("npz arrays", numbered, names, (), path.stat().st_size)


def read_npy_file(path: Path, limits: Limits) -> Catalogue:
    """The catalogue of one ``.npy`` with its label file, if there is one beside it."""
    stem = path.name[: -len(path.suffix)]
    candidates = [f"{stem}_labels", f"{stem}.labels"]
    if "images" in stem:
        candidates.append(stem.replace("images", "labels"))
    if stem.startswith("x"):
        candidates.append("y" + stem[1:])
    beside = [path.with_name(name + path.suffix) for name in candidates]
    found = next((file for file in beside if file.is_file() and not file.is_symlink()), None)
    labels = None
    if found is not None:
        with reading(found, "an .npy label file"):
            labels = np.array(read_npy(found, limits))

    def open_images() -> NDArray[Any]:
        with reading(path, "an .npy file"):
            return read_npy(path, limits)

    parts, names = _number_texts([ArrayPart(WHOLE, open_images, labels)], None)
    size = path.stat().st_size + (0 if found is None else found.stat().st_size)
    return Catalogue("npy array", parts, names, (), size)


def _parts(path: Path, members: dict[str, zipfile.ZipInfo], limits: Limits) -> list[ArrayPart]:
    parts: list[ArrayPart] = []
    for split in (*SPLIT_WORDS, WHOLE):
        images = _find(members, IMAGE_WORDS, split)
        if images is None or (split == WHOLE and parts):
            continue
        labels = _find(members, LABEL_WORDS, split)
        subjects = _find(members, SUBJECT_WORDS, split)
        parts.append(
            ArrayPart(
                split,
                _opener(path, images, limits),
                None if labels is None else read_member(path, labels, limits),
                None if subjects is None else _texts(path, subjects, limits),
            )
        )
    return parts


def _opener(path: Path, member: zipfile.ZipInfo, limits: Limits) -> Any:
    def open_images() -> NDArray[Any]:
        with reading(path, "an .npz file"):
            return read_member(path, member, limits)

    return open_images


def _find(members: dict[str, zipfile.ZipInfo], words: tuple[str, ...], split: str) -> zipfile.ZipInfo | None:
    if split == WHOLE:
        keys = list(words)
    else:
        names = SPLIT_WORDS[split]
        keys = [key for word in words for name in names for key in (f"{word}_{name}", f"{name}_{word}")]
    return next((members[key] for key in keys if key in members), None)


def _texts(path: Path, member: zipfile.ZipInfo, limits: Limits) -> tuple[str, ...]:
    array = read_member(path, member, limits).reshape(-1)
    if array.dtype.kind == "S":
        return tuple(value.decode("utf-8", "replace") for value in array.tolist())
    return tuple(str(value) for value in array.tolist())


def _number_texts(
    parts: list[ArrayPart], names: tuple[str, ...] | None
) -> tuple[tuple[ArrayPart, ...], tuple[str, ...] | None]:
    """Parts with text labels replaced by class indices, the same in every split."""
    texts = {
        place: [
            value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            for value in part.labels.reshape(-1).tolist()
        ]
        for place, part in enumerate(parts)
        if part.labels is not None and part.labels.dtype.kind in "US"
    }
    if not texts:
        return tuple(parts), names if names is not None else _joint_names(parts)
    numbers, found = number_labels([text for values in texts.values() for text in values])
    if names is not None and set(found) <= set(names):
        numbers, found = {name: index for index, name in enumerate(names)}, names
    numbered = [
        ArrayPart(
            part.split, part.open, np.array([numbers[text] for text in texts[place]], np.int64), part.subjects
        )
        if place in texts
        else part
        for place, part in enumerate(parts)
    ]
    return tuple(numbered), found


def _joint_names(parts: list[ArrayPart]) -> tuple[str, ...] | None:
    """ "0" .. "K-1" over all splits, so that a class missing from one split keeps its place."""
    arrays = [part.labels for part in parts if part.labels is not None and part.labels.size]
    if not arrays or any(array.dtype.kind not in "iu" for array in arrays):
        return None
    largest = max(int(array.max()) for array in arrays)
    return tuple(str(index) for index in range(largest + 1)) if 0 <= largest < 65_536 else None
