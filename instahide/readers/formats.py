"""Which reader a path is for: by the file's name, or by what a folder holds."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..errors import InvalidInputError
from .catalogue import WHOLE, Catalogue, FilePart, Item
from .limits import Limits, display_name
from .slicing import read_slicing

KNOWN = (
    "a folder of pictures or volumes, .nii, .nii.gz, .npz, .npy, .csv, idx (*-images-idx3-ubyte, .gz too), "
    "CIFAR batches, or a table of numbers with columns.toml beside it"
)


def find_catalogue(path: Path, limits: Limits) -> Catalogue:
    """The catalogue of the data set at ``path``.

    The path itself may be a link (the user named it); nothing below it may.

    Raises:
        InvalidInputError: nothing there, not readable, or no format that is known.
    """
    try:
        root = path.expanduser().resolve(strict=True)
        if root.is_dir():
            os.scandir(root).close()
    except (OSError, RuntimeError, ValueError) as error:
        reason = (error.strerror or "cannot be read") if isinstance(error, OSError) else "is no valid path"
        raise InvalidInputError(
            f"{display_name(path)}: {reason.lower()}", hint="give an existing file or folder"
        ) from None
    catalogue = _of_folder(root, limits) if root.is_dir() else _of_file(root, limits)
    if not any(isinstance(part, FilePart) for part in catalogue.parts):
        return catalogue
    folder = root if root.is_dir() else root.parent
    return replace(catalogue, slicing=read_slicing(folder, limits))


def _of_folder(root: Path, limits: Limits) -> Catalogue:
    from .cifar import find_cifar_batches, read_cifar
    from .folder import read_folder
    from .idx import find_idx_images, read_idx
    from .table import find_manifest, read_table

    if any(root.glob("shard-*.safetensors")):
        raise InvalidInputError(
            f"{display_name(root.name)} holds encodings, not images",
            hint="`instahide inspect` tells whether it is a whole data set, which `instahide train` takes",
        )
    manifest = find_manifest(root)
    if manifest is not None:
        return read_table(manifest, limits)
    idx_files = find_idx_images(root)
    if idx_files:
        return read_idx(idx_files, limits)
    batches = find_cifar_batches(root)
    if batches:
        return read_cifar(batches, limits)
    return read_folder(root, limits)


def _of_file(file: Path, limits: Limits) -> Catalogue:
    from .cifar import BATCH_NAMES, read_cifar
    from .idx import IMAGE_FILE, read_idx
    from .nifti import is_nifti_name
    from .table_form import form_of

    suffix = file.suffix.lower()
    if suffix == ".npz":
        from .arrays import read_npz

        return read_npz(file, limits)
    if suffix == ".npy":
        from .arrays import read_npy_file

        return read_npy_file(file, limits)
    if suffix in (".csv", ".tsv", ".data") and form_of(file, limits) is not None:
        from .tabular import read_numbers

        return read_numbers(file, limits)
    if suffix == ".csv":
        from .table import read_table

        return read_table(file, limits)
    if is_nifti_name(file.name):
        item = Item(file, display_name(file.name))
        return Catalogue("NIfTI volume", (FilePart(WHOLE, (item,)),), None, (), file.stat().st_size)
    if IMAGE_FILE.match(file.name):
        return read_idx([file], limits)
    if BATCH_NAMES.match(file.name) or (file.name in ("train", "test") and file.with_name("meta").is_file()):
        return read_cifar([file], limits)
    raise InvalidInputError(f"{display_name(file.name)} is in no format that is known", hint=f"give {KNOWN}")
