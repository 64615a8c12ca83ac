"""Released encodings from anybody: a folder of ours, or arrays in ``.npz`` / ``.npy`` files.

Axes: N encodings, K classes, C channels, H rows, W columns.

    encoded/            a folder that ``instahide encode`` wrote; its manifest names the law
    FILE.npz            ``encodings`` (N, C, H, W) or (N, H, W, C) float; ``labels`` (N, K), optional
    FILE.npy            encodings; labels in a second file

Labels are soft: not negative, and they need not sum to one (the published code leaves the private part of
the coefficients in them). Files are somebody else's: sizes are checked before memory is taken, objects are
never unpickled, and what does not fit is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..encoder_config import EncoderConfig
from ..errors import InvalidInputError
from ..images import ImageSet
from ..readers.limits import MIB, Limits, display_name, reading
from ..readers.npy_format import list_members, read_member, read_npy

ENCODING_NAMES = ("encodings", "encoding", "encrypted", "images", "x")
LABEL_NAMES = ("labels", "label", "y")
MAX_BYTES = 1024 * MIB
"""Of float32 encodings held in memory: 87,000 of 32×32×3. Of a larger release the first so many rows are
read, one after the other, and the result says so: the rest could only add to what leaks."""


@dataclass(frozen=True, eq=False)
class Release:
    """N encodings as somebody received them.

    Args:
        images: (N, C, H, W) float32, as released.
        labels: (N, K) float32, or ``None`` where labels were withheld.
        config: the public law, if the release says it.
        scheme: ``"inside"`` or ``"cross"``, if the release says it.
        source: the name shown to people.
        num_left_out: rows of the release beyond what is held in memory.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    config: EncoderConfig | None
    scheme: str | None
    source: str
    num_left_out: int = 0

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return int(channels), int(height), int(width)


def read_release(path: Path, *, labels: Path | None = None, at_least: int = 1) -> Release:
    """Read and check a release.

    Args:
        labels: a ``.npy`` with (N, K) labels, where they are in a file of their own.
        at_least: encodings the attack needs.

    Raises:
        InvalidInputError: not encodings, wrong rank, NaN, labels that do not fit, or too few.
        IntegrityError: a damaged file.
        RefusedError: a compressed file that would not fit in memory.
    """
    if not path.exists():
        raise InvalidInputError(f"{path} is not there", hint="give a folder of encodings, an .npz or an .npy")
    if path.is_dir():
        release = _read_folder(path)
    else:
        images, found = _read_arrays(path)
        if labels is not None:
            found = _read_npy(labels)
        if found is not None:
            found = check_labels(found, len(images)).numpy()[: _rows_held(images.shape[1:])]
        held = check_encodings(images[: _rows_held(images.shape[1:])], path.name)
        release = Release(
            held,
            None if found is None else torch.from_numpy(found),
            None,
            None,
            path.name,
            len(images) - len(held),
        )
    if len(release) < at_least:
        raise InvalidInputError(
            f"{release.source} holds {len(release)} encodings, and this attack needs {at_least}",
            hint="give the whole release",
        )
    return release


def read_public_images(path: Path, shape: tuple[int, int, int]) -> ImageSet:
    """Public images of the encodings' shape from anything the readers understand (``x`` uint8 in an npz)."""
    from ..readers import load_images

    C, H, W = shape
    images = load_images(path, image_size=H if H == W else None, channels=C)
    if images.image_shape != shape:
        raise InvalidInputError(
            f"public images are {images.image_shape}, the encodings {shape} (C, H, W)",
            hint="resize them to the encodings' shape",
        )
    return ImageSet(images.images)


def read_array(path: Path, names: tuple[str, ...]) -> NDArray[Any]:
    """The first array of an ``.npz`` that has one of ``names``, or the array of an ``.npy``.

    Raises:
        InvalidInputError: no such file or array.
        IntegrityError: a damaged file, or pickled objects.
    """
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a file", hint=f"give an .npz with {names[0]}")
    if path.suffix == ".npy":
        return _read_npy(path)
    with reading(path, "an .npz file"):
        members = list_members(path)
        found = next((members[name] for name in names if name in members), None)
        if found is None:
            shown = ", ".join(display_name(name) for name in sorted(members)[:12]) or "nothing"
            raise InvalidInputError(
                f"{display_name(path.name)} has no array named {names[0]}; it holds {shown}",
                hint=f"numpy.savez(FILE, {names[0]}=...)",
            )
        return read_member(path, found, Limits(max_decoded_bytes=2 * MAX_BYTES))


def check_encodings(images: NDArray[Any], source: str = "the file") -> torch.Tensor:
    """``images`` as a float32 (N, C, H, W) tensor.

    Raises:
        InvalidInputError: not floating point, not of rank 4, no 1 or 3 channels, or not all numbers.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise InvalidInputError(
            f"encodings in {source} have shape {images.shape}", hint="give (N, C, H, W) or (N, H, W, C)"
        )
    if images.dtype.kind != "f":
        raise InvalidInputError(
            f"encodings in {source} are {images.dtype}, not floating point",
            hint="encodings have signs: give float values, as released, in about [-1, 1]",
        )
    if images.shape[1] not in (1, 3):
        if images.shape[3] not in (1, 3):
            raise InvalidInputError(
                f"encodings of shape {images.shape} have neither 1 nor 3 channels",
                hint="give (N, C, H, W) or (N, H, W, C) with C 1 or 3",
            )
        images = np.moveaxis(images, 3, 1)
    values = np.ascontiguousarray(images, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2, 3)))
    if bad.size:
        raise InvalidInputError(
            f"encoding {bad[0]} of {source} holds NaN or infinity ({bad.size} of {len(values)} do)",
            hint="was the file cut, or written by a run that failed?",
        )
    return torch.from_numpy(values)


def check_labels(labels: NDArray[Any], count: int) -> torch.Tensor:
    """``labels`` as a float32 (N, K) tensor of soft labels.

    Raises:
        InvalidInputError: another rank, another number of rows, a single class, negative or not numbers.
    """
    if labels.ndim != 2 or len(labels) != count or labels.shape[1] < 2:
        raise InvalidInputError(
            f"labels have shape {labels.shape} for {count} encodings",
            hint="give soft labels (N, K), one row an encoding and K >= 2 classes; or attack without labels",
        )
    values = np.ascontiguousarray(labels, dtype=np.float32)
    if not np.isfinite(values).all() or (values < 0).any() or (values.sum(axis=1) <= 0).any():
        row = int(
            np.flatnonzero(~(np.isfinite(values).all(1) & (values >= 0).all(1) & (values.sum(1) > 0)))[0]
        )
        raise InvalidInputError(
            f"label row {row} is no soft label: {np.round(values[row][:8], 3).tolist()}",
            hint="weights must be numbers, not negative, and not all zero",
        )
    return torch.from_numpy(values)


def _read_folder(path: Path) -> Release:
    from ..storage import EncodedFolder

    folder = EncodedFolder(path)
    manifest = folder.manifest
    wanted, shards = _rows_held(manifest.image_shape), []
    for shard in folder.shards():
        shards.append(shard)
        if sum(map(len, shards)) >= wanted:
            break
    images = torch.cat([shard.images for shard in shards])[:wanted]
    labels = torch.cat([shard.labels for shard in shards])[:wanted]
    left_out = manifest.num_images - len(images)
    return Release(images, labels, shards[0].config, shards[0].scheme, path.name, left_out)


def _read_arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    if path.suffix == ".npy":
        return _read_npy(path), None
    limits = Limits(max_decoded_bytes=2 * MAX_BYTES)
    with reading(path, "an .npz file"):
        members = list_members(path)
        images = next((members[name] for name in ENCODING_NAMES if name in members), None)
        if images is None:
            shown = ", ".join(display_name(name) for name in sorted(members)[:12]) or "nothing"
            raise InvalidInputError(
                f"{display_name(path.name)} has no array named encodings; it holds {shown}",
                hint="numpy.savez(FILE, encodings=..., labels=...)",
            )
        labels = next((members[name] for name in LABEL_NAMES if name in members), None)
        array = read_member(path, images, limits)
        return array, None if labels is None else read_member(path, labels, limits)


def _read_npy(path: Path) -> NDArray[Any]:
    with reading(path, "an .npy file"):
        return read_npy(path, Limits(max_decoded_bytes=2 * MAX_BYTES))


def _rows_held(shape: tuple[int, ...]) -> int:
    return max(1, MAX_BYTES // (4 * max(1, int(np.prod(shape)))))
