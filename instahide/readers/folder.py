"""A folder of pictures, DICOM files or NIfTI volumes.

Three layouts, told apart by the sub-folders:

    folder/LABEL/...            one sub-folder a class (ImageFolder)
    folder/SPLIT/LABEL/...      SPLIT is train, test or val (training, testing, valid, validation)
    folder/...                  no labels: a public pool

Below a class folder pictures may lie at any depth, as DICOM studies do. Order is by the bytes
of the names, the same in every locale. Hidden files, ``Thumbs.db`` and texts beside the
pictures are passed over; links, pipes and files of unknown kind are set aside with a reason.
An empty class folder stays a class, so that sites number their classes alike.
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InvalidInputError
from . import dicom, nifti, picture
from .catalogue import SPLIT_NAMES, WHOLE, Catalogue, FilePart, Item
from .limits import Limits, QuarantinedFile, UnreadableError, display_name, open_regular, relative_name

PASSED_OVER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "dicomdir"})
TEXT_SUFFIXES = frozenset(
    {".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml"}
    | {".html", ".pdf", ".log", ".md5", ".sha256"}
)
DATA_SUFFIXES = picture.SUFFIXES | dicom.SUFFIXES


@dataclass
class _Walk:
    """The state of one walk: what was set aside and how much was seen."""

    root: Path
    limits: Limits
    quarantined: list[QuarantinedFile] = field(default_factory=list)
    num_files: int = 0
    num_bytes: int = 0

    def set_aside(self, path: Path, reason: str) -> None:
        self.quarantined.append(QuarantinedFile(relative_name(path, self.root), reason))


def read_folder(root: Path, limits: Limits) -> Catalogue:
    """The catalogue of a folder; nothing is decoded yet.

    Raises:
        InvalidInputError: no picture at all, split names mixed with others, or too many files.
    """
    walk = _Walk(root, limits)
    loose, folders = _list(root, walk)
    splits = _split_folders(folders)
    found = {split: _labelled(*_list(folder, walk), walk) for split, folder in splits.items()}
    if splits:
        for path in loose:
            walk.set_aside(path, "outside the split folders")
    else:
        found = {WHOLE: _labelled(loose, folders, walk)}
    if not any(files for classes in found.values() for files in classes.values()):
        if walk.quarantined:
            first = walk.quarantined[0]
            raise InvalidInputError(
                f"no usable picture in {display_name(root.name)}; {first.name}: {first.reason}",
                hint="give a folder with PNG, JPEG, BMP, TIFF, PGM, WebP, DICOM or NIfTI files",
            )
        raise InvalidInputError(
            f"no picture in {display_name(root.name)}",
            hint="give folder/LABEL/*.png or *.nii.gz, a CSV manifest, .npz, idx or CIFAR files",
        )
    names = tuple(sorted({name for classes in found.values() for name in classes if name is not None}))
    index = {name: number for number, name in enumerate(names)}
    parts = tuple(FilePart(split, _items(classes, index, root)) for split, classes in found.items())
    items = [item for part in parts for item in part.items]
    all_volumes = all(nifti.is_nifti_name(item.path.name) for item in items)
    kind = "folder of NIfTI volumes" if all_volumes else "image folder"
    return Catalogue(kind, parts, names or None, tuple(walk.quarantined), walk.num_bytes)


_Classes = dict[str | None, list[Path]]
"""Files by class name; the key None holds files without a label."""


def _items(classes: _Classes, index: dict[str, int], root: Path) -> tuple[Item, ...]:
    return tuple(
        Item(path, relative_name(path, root), None if name is None else index[name])
        for name in sorted(classes, key=lambda name: name or "")
        for path in classes[name]
    )


def _labelled(loose: list[Path], folders: list[Path], walk: _Walk) -> _Classes:
    """Class name → files; with no class folder that holds pictures, {None: the loose files}."""
    classes: _Classes = {}
    for folder in folders:
        # NFC: macOS stores "é" as two code points, Linux and Windows mostly as one.
        name = display_name(unicodedata.normalize("NFC", folder.name))
        classes.setdefault(name, []).extend(_below(folder, walk, 1))
    if not any(classes.values()):
        return {None: loose}
    for path in loose:
        walk.set_aside(path, "outside the class folders")
    return classes


def files_below(folder: Path, root: Path, limits: Limits) -> tuple[list[Path], list[QuarantinedFile], int]:
    """Data files at any depth below ``folder``, what was set aside under names from ``root``, and bytes."""
    walk = _Walk(root, limits)
    files = _below(folder, walk, 1)
    return files, walk.quarantined, walk.num_bytes


def _below(folder: Path, walk: _Walk, depth: int) -> list[Path]:
    if depth > walk.limits.max_depth:
        walk.set_aside(folder, f"folders nested deeper than {walk.limits.max_depth}")
        return []
    files, folders = _list(folder, walk)
    for inner in folders:
        files += _below(inner, walk, depth + 1)
    return files


def _list(folder: Path, walk: _Walk) -> tuple[list[Path], list[Path]]:
    """Picture files and sub-folders of ``folder``, each in byte order of the names."""
    files: list[Path] = []
    folders: list[Path] = []
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        walk.set_aside(folder, (error.strerror or "cannot be listed").lower())
        return files, folders
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name.lower() in PASSED_OVER:
            continue
        if entry.is_symlink():
            walk.set_aside(path, "symbolic link, not followed")
        elif entry.is_dir():
            folders.append(path)
        elif not entry.is_file():
            walk.set_aside(path, "not a regular file")
        elif _is_data(path, walk):
            files.append(path)
            walk.num_files += 1
            walk.num_bytes += entry.stat(follow_symlinks=False).st_size
    if walk.num_files > walk.limits.max_files:
        raise InvalidInputError(
            f"more than {walk.limits.max_files:,} files", hint="pack the pictures into one .npy or .npz file"
        )
    return files, folders


def _is_data(path: Path, walk: _Walk) -> bool:
    suffix = path.suffix.lower()
    if suffix in DATA_SUFFIXES or nifti.is_nifti_name(path.name):
        return True
    if suffix in TEXT_SUFFIXES or path.name.upper().startswith(("LICENSE", "LICENCE", "README")):
        return False
    try:  # DICOM files often have no suffix, or the tail of a UID
        with os.fdopen(open_regular(path), "rb") as file:
            if dicom.looks_like_dicom(file.read(132)):
                return True
    except UnreadableError as error:
        walk.set_aside(path, error.reason)
        return False
    walk.set_aside(path, "not a supported picture format")
    return False


def _split_folders(folders: list[Path]) -> dict[str, Path]:
    """Split → folder when the sub-folders are splits; {} when they are classes."""
    splits: dict[str, Path] = {}
    others = [folder.name for folder in folders if folder.name.lower() not in SPLIT_NAMES]
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split in splits:
            raise InvalidInputError(
                f"folders {splits[split].name} and {folder.name} are both the {split} split",
                hint="keep one of them",
            )
        if split is not None:
            splits[split] = folder
    if "train" in splits and others:
        raise InvalidInputError(
            f"folder {display_name(others[0])} stands beside the split folder {splits['train'].name}",
            hint="keep only train, test and val there, or name the classes in a CSV manifest",
        )
    return {} if others else {split: splits[split] for split in ("train", "val", "test") if split in splits}
