"""A CSV manifest beside its pictures: ``path,label[,subject_id][,split]``.

Column names are case-insensitive and have synonyms (``COLUMNS``); the separator is the comma,
semicolon or tab found in the header. Paths are relative to the CSV file's folder. A path that
leaves that folder is refused outright, for it is no accident; a file that is missing, linked
or unreadable is set aside. A path to a folder stands for all files below it, as those of a
DICOM series. ``subject_id`` stays in memory.
"""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InvalidInputError
from .catalogue import SPLIT_NAMES, WHOLE, Catalogue, FilePart, Item, number_labels
from .folder import files_below
from .limits import (
    Limits,
    QuarantinedFile,
    UnreadableError,
    display_name,
    open_regular,
    read_bytes,
    reading,
    relative_name,
    resolve_inside,
)

MANIFEST_NAMES = ("manifest.csv", "labels.csv")
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path"),
    "label": ("label", "class", "target", "diagnosis"),
    "subject": ("subject_id", "subject", "patient_id", "patientid", "patient"),
    "split": ("split", "set", "partition"),
}


@dataclass(frozen=True)
class _Row:
    number: int  # line in the file, counted from 1, as an editor shows it
    path: str
    label: str
    subject: str = field(repr=False)
    split: str


def read_table(path: Path, limits: Limits) -> Catalogue:
    """The catalogue of a CSV manifest; nothing is decoded yet.

    Raises:
        InvalidInputError: no path column, an unknown split, labels on some rows only, or no row.
        RefusedError: a path outside the folder.
        IntegrityError: not a text file.
    """
    with reading(path, "a CSV manifest in UTF-8"):
        rows = _parse(read_bytes(path, limits).decode("utf-8-sig"), path, limits)
    labelled = any(row.label for row in rows)
    numbers, class_names = number_labels([row.label for row in rows if row.label])
    has_splits = any(row.split for row in rows)
    parts: dict[str, list[Item]] = {}
    quarantined: list[QuarantinedFile] = []
    num_bytes = 0
    for row in rows:
        name = display_name(row.path)
        try:
            file = resolve_inside(path.parent, row.path, where=f"{display_name(path.name)} line {row.number}")
            files = [file]
            if file.is_dir():
                files, bad, below = files_below(file, path.parent, limits)
                quarantined += bad
                num_bytes += below
                if not files:
                    raise UnreadableError("a folder without pictures or volumes")
            else:
                num_bytes += _size(file)
            if labelled and not row.label:
                raise UnreadableError("no label in the manifest")
            if has_splits and not row.split:
                raise UnreadableError("no split in the manifest")
        except UnreadableError as error:
            quarantined.append(QuarantinedFile(name, error.reason))
            continue
        label = numbers[row.label] if labelled else None
        names = [name] if files == [file] else [relative_name(found, path.parent) for found in files]
        parts.setdefault(row.split or WHOLE, []).extend(
            Item(found, shown, label, row.subject or None) for found, shown in zip(files, names, strict=True)
        )
    ordered = [split for split in ("train", "val", "test", WHOLE) if split in parts]
    return Catalogue(
        "CSV manifest",
        tuple(FilePart(split, tuple(parts[split])) for split in ordered),
        class_names if labelled else None,
        tuple(quarantined),
        num_bytes,
    )


def _size(path: Path) -> int:
    descriptor = open_regular(path)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _parse(text: str, path: Path, limits: Limits) -> list[_Row]:
    first_line = text.split("\n", 1)[0]
    separator = max(",;\t", key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header = [name.strip().lower() for name in next(reader, [])]
    column = {key: _column(header, names) for key, names in COLUMNS.items()}
    if column["path"] is None:
        raise InvalidInputError(
            f"{display_name(path.name)} has no column for the picture's path",
            hint="the first line names the columns: path,label[,subject_id][,split]",
        )
    rows = [
        _row(cells, column, reader.line_num, path) for cells in reader if any(cell.strip() for cell in cells)
    ]
    if not rows:
        raise InvalidInputError(f"{display_name(path.name)} lists no picture", hint="add one line a picture")
    if len(rows) > limits.max_files:
        raise InvalidInputError(f"{display_name(path.name)} lists {len(rows):,} files", hint="use .npy")
    return rows


def _column(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _row(cells: list[str], column: dict[str, int | None], number: int, path: Path) -> _Row:
    def cell(key: str) -> str:
        place = column[key]
        return cells[place].strip() if place is not None and place < len(cells) else ""

    split = cell("split").lower()
    if split and split not in SPLIT_NAMES:
        raise InvalidInputError(
            f"{display_name(path.name)} line {number}: split {display_name(split)!r} is unknown",
            hint="use train, test or val",
        )
    if not cell("path"):
        raise InvalidInputError(
            f"{display_name(path.name)} line {number} has no path", hint="remove or complete the line"
        )
    return _Row(number, cell("path"), cell("label"), cell("subject"), SPLIT_NAMES.get(split, ""))


def find_manifest(folder: Path) -> Path | None:
    """``manifest.csv`` or ``labels.csv`` in ``folder``, in any letter case."""
    listing = {path.name.lower(): path for path in sorted(folder.iterdir()) if not path.is_symlink()}
    return next((listing[name] for name in MANIFEST_NAMES if name in listing), None)
