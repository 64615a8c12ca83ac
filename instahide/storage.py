"""An encoded data set on disk: safetensors shards, and a manifest written last.

Axes: N rows, K classes, C channels, H rows and W columns of pixels.

::

    encoded/
      manifest.json               see instahide.manifest; its presence means "whole"
      shard-00000.safetensors     images (n, C, H, W) int8, int16 or float32; labels (n, K) float32
      shard-00001.safetensors     ...

Quantised encodings are stored as the integers they are (a quarter of float32) and come back
bit for bit; others as float32. Several epochs lie one after the other in the same numbering:
rows ``e*N/epochs`` to ``(e+1)*N/epochs`` are epoch ``e``. A folder without a manifest is
unfinished and never loaded. Every shard is checked against its SHA-256 from the same bytes
that are then parsed, so a file that is corrupt, truncated, edited, missing or added is named
and refused. None of this is a signature: it shows accidents and plain edits, not a forger.

Files are made with mode 0600: an encoding can be attacked, so who may read it is a decision.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import safetensors.torch
import torch

from . import __version__
from .atomic import atomic_write_bytes, sync_folder
from .encoded_dataset import EncodedDataset
from .encoder_config import EncoderConfig
from .errors import IntegrityError, InvalidInputError
from .manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardRecord,
    label_policy,
    read_manifest,
    stored_values,
    write_manifest,
)
from .texture_filter import VERSION as FILTER_VERSION

PRIVATE_FILE = 0o600
MAX_SHARD_ROWS = 8192
MAX_SHARD_BYTES = 64 << 20
_PACK_VALUES = 1 << 20  # packed at a time, so that temporaries stay in the cache
_TYPES = {"int8": torch.int8, "int16": torch.int16, "float32": torch.float32}


class EncodedFolder:
    """A finished encoded folder, read shard by shard: memory for one shard, not for the set.

    Args:
        path: the folder.
        verify: check each shard against its SHA-256 when it is read. Sizes, shapes and types
            are checked in any case.

    Raises:
        IntegrityError: no manifest, a bad one, or shards that are missing, of another size or
            not listed.
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True) -> None:
        self.path = Path(path)
        self.verify = verify
        if not self.path.is_dir():
            raise InvalidInputError(
                f"{self.path} is not a folder", hint="give the folder `instahide encode` wrote"
            )
        self.manifest = read_manifest(self.path)
        self.config = EncoderConfig.from_dict(self.manifest.law)
        self._check_listing()

    def __len__(self) -> int:
        return self.manifest.num_images

    def __repr__(self) -> str:
        return f"EncodedFolder({len(self)} encodings in {len(self.manifest.shards)} shards)"

    def shards(self, start: int = 0, stop: int | None = None) -> Iterator[EncodedDataset]:
        """The rows ``start`` to ``stop`` in order, at most one shard at a time."""
        stop = len(self) if stop is None else min(stop, len(self))
        first = 0
        for record in self.manifest.shards:
            low, high = max(start - first, 0), min(stop - first, record.num_images)
            if low < high:
                shard = self.read_shard(record)
                yield shard if high - low == len(shard) else _slice(shard, low, high)
            first += record.num_images

    def epoch(self, index: int) -> Iterator[EncodedDataset]:
        """The rows of one epoch, counted from 0, shard by shard."""
        if not 0 <= index < self.manifest.epochs:
            raise InvalidInputError(
                f"epoch {index} is not in {self.path}",
                hint=f"it holds epochs 0 to {self.manifest.epochs - 1}",
            )
        per_epoch = self.manifest.images_per_epoch
        return self.shards(index * per_epoch, (index + 1) * per_epoch)

    def load(self) -> EncodedDataset:
        """All rows of all epochs at once: 4·N·C·H·W bytes."""
        manifest = self.manifest
        images = torch.empty((len(self), *manifest.image_shape))
        labels = torch.empty((len(self), len(manifest.class_names)))
        first = 0
        for shard in self.shards():
            images[first : first + len(shard)] = shard.images
            labels[first : first + len(shard)] = shard.labels
            first += len(shard)
        return EncodedDataset(images, labels, manifest.class_names, self.config, manifest.scheme)

    def read_shard(self, record: ShardRecord) -> EncodedDataset:
        """One shard, checked; raises IntegrityError naming the file."""
        data = _shard_bytes(self.path, record)
        if self.verify and hashlib.sha256(data).hexdigest() != record.sha256:
            raise _damaged(record.name, "its SHA-256 is not the manifest's, so it was edited or damaged")
        try:
            tensors = safetensors.torch.load(data)
        except Exception as error:  # the parser's own error types are not all public
            raise _damaged(record.name, f"not a safetensors file ({error})") from error
        return self._checked(record, tensors)

    def _checked(self, record: ShardRecord, tensors: dict[str, torch.Tensor]) -> EncodedDataset:
        manifest = self.manifest
        expected = {
            "images": ((record.num_images, *manifest.image_shape), _TYPES[manifest.values["type"]]),
            "labels": ((record.num_images, len(manifest.class_names)), torch.float32),
        }
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        if found != expected:
            raise _damaged(record.name, f"it holds {found}, not {expected}")
        images, labels = unpack_values(tensors["images"], manifest.scale), tensors["labels"]
        if not bool((images.abs() <= 1.0).all()):
            raise _damaged(record.name, "a pixel lies outside [-1, 1] or is not a number")
        if not bool(((labels >= 0.0) & (labels <= 1.0 + 1e-4)).all()):
            raise _damaged(record.name, "a label lies outside [0, 1] or is not a number")
        return EncodedDataset(images, labels, manifest.class_names, self.config, manifest.scheme)

    def _check_listing(self) -> None:
        listed = {record.name for record in self.manifest.shards}
        present = {entry.name for entry in self.path.iterdir() if entry.suffix == ".safetensors"}
        if extra := present - listed:
            raise _damaged(min(extra), "a shard the manifest does not know")
        if missing := listed - present:
            raise _damaged(min(missing), "the shard is missing")
        for record in self.manifest.shards:
            path = self.path / record.name
            if path.is_symlink() or not path.is_file():
                raise _damaged(record.name, "not a plain file")
            if path.stat().st_size != record.bytes:
                raise _damaged(
                    record.name, f"{path.stat().st_size} bytes long, the manifest says {record.bytes}"
                )


def load_encoded(path: str | os.PathLike[str], *, verify: bool = True) -> EncodedDataset:
    """Load a finished folder into memory; see :class:`EncodedFolder` for large ones and for errors."""
    return EncodedFolder(path, verify=verify).load()


def save_encoded(
    data: EncodedDataset | Iterable[EncodedDataset],
    path: str | os.PathLike[str],
    *,
    shard_size: int | None = None,
    epochs: int = 1,
    overwrite: bool = False,
) -> Manifest:
    """Write encodings to the folder ``path``: all of it appears at once, or nothing.

    This counts nothing: charge an :class:`~instahide.exposure.ExposureLedger` before the folder
    leaves the site, or use ``instahide encode``, which does.

    Args:
        data: one data set, or batches of one law and shape (say ``encoder.encode_batches(1024)``),
            which are written as they come.
        shard_size: rows in a shard; by default 8192, fewer when they would pass 64 MiB.
        epochs: how many equally long epochs ``data`` holds, one after the other.
        overwrite: replace a finished folder; anything else in the way is refused.

    Raises:
        InvalidInputError: no rows, mixed laws or shapes, values off the law's grid, or a folder
            that is in the way.
    """
    target = Path(os.path.abspath(path))  # noqa: PTH100  # not resolve(): a link stays where it is
    _check_target(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        batches = [data] if isinstance(data, EncodedDataset) else data
        shards: list[ShardRecord] = []
        first: EncodedDataset | None = None
        for shard in rebatch(batches, shard_size):
            first = first if first is not None else shard
            shards.append(write_shard(staging, len(shards), shard))
        if first is None:
            raise InvalidInputError("there are no encodings to save", hint="encode at least one image")
        manifest = describe(
            shards,
            config=first.config,
            scheme=first.scheme,
            image_shape=first.image_shape,
            class_names=first.class_names,
            epochs=epochs,
        )
        write_manifest(staging, manifest, mode=PRIVATE_FILE)
        _put_in_place(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def describe(
    shards: Iterable[ShardRecord],
    *,
    config: EncoderConfig,
    scheme: str,
    image_shape: tuple[int, int, int],
    class_names: tuple[str, ...],
    epochs: int,
    row_order: str = "data",
) -> Manifest:
    """The manifest of ``shards``, counted up; raises InvalidInputError if epochs do not divide the rows."""
    records = tuple(shards)
    filtered = scheme == "cross" and config.mode == "hardened"
    total = sum(record.num_images for record in records)
    if epochs < 1 or total % epochs:
        raise InvalidInputError(f"{total} rows are not {epochs} epochs of one length", hint="check epochs=")
    return Manifest(
        created_by=f"instahide-fl {__version__}",
        scheme=scheme,
        law=config.to_dict(),
        label_policy=label_policy(config),
        texture_filter_version=FILTER_VERSION if filtered else None,
        epochs=epochs,
        num_images=total,
        image_shape=image_shape,
        class_names=class_names,
        row_order=row_order,
        values=stored_values(config.quantization_levels),
        shards=records,
    )


def shard_rows(image_shape: tuple[int, int, int], shard_size: int | None = None) -> int:
    """Rows in a shard: what was asked for, else 8192 or as many as fit 64 MiB of float32."""
    if shard_size is not None:
        if shard_size < 1:
            raise InvalidInputError(f"shard size is {shard_size}", hint="a few thousand rows are usual")
        return shard_size
    channels, height, width = image_shape
    return max(1, min(MAX_SHARD_ROWS, MAX_SHARD_BYTES // (4 * channels * height * width)))


def rebatch(batches: Iterable[EncodedDataset], shard_size: int | None) -> Iterator[EncodedDataset]:
    """The same rows in pieces of one shard each (the last may be shorter); all of one law and shape."""
    waiting: list[EncodedDataset] = []
    first: EncodedDataset | None = None
    count = 0
    for batch in batches:
        first = batch if first is None else first
        _check_alike(first, batch)
        rows = shard_rows(batch.image_shape, shard_size)
        start = 0
        while start < len(batch):
            piece = _slice(batch, start, min(len(batch), start + rows - count))
            waiting.append(piece)
            count, start = count + len(piece), start + len(piece)
            if count == rows:
                yield _concatenate(waiting)
                waiting, count = [], 0
    if waiting:
        yield _concatenate(waiting)


def _concatenate(parts: list[EncodedDataset]) -> EncodedDataset:
    first = parts[0]
    if len(parts) == 1:
        return first
    images = torch.cat([part.images for part in parts])
    labels = torch.cat([part.labels for part in parts])
    return EncodedDataset(images, labels, first.class_names, first.config, first.scheme)


def _check_alike(first: EncodedDataset, batch: EncodedDataset) -> None:
    if (batch.config, batch.scheme, batch.class_names) != (first.config, first.scheme, first.class_names):
        raise InvalidInputError("batches differ in law or classes", hint="save them in different folders")
    if batch.image_shape != first.image_shape:
        raise InvalidInputError("batches differ in image shape", hint="save them in different folders")


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def serialize_shard(index: int, shard: EncodedDataset) -> tuple[ShardRecord, bytes]:
    """The shard's file content and its record."""
    scale = shard.config.quantization_levels
    tensors = {"images": pack_values(shard.images, scale), "labels": shard.labels.cpu().contiguous()}
    data = safetensors.torch.save(tensors)
    digest = hashlib.sha256(data).hexdigest()
    return ShardRecord(name=shard_name(index), num_images=len(shard), bytes=len(data), sha256=digest), data


def write_shard(folder: Path, index: int, shard: EncodedDataset) -> ShardRecord:
    """Write one shard in one step; returns what the manifest must say of it."""
    record, data = serialize_shard(index, shard)
    atomic_write_bytes(folder / record.name, data, mode=PRIVATE_FILE)
    return record


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pack_values(images: torch.Tensor, scale: int | None) -> torch.Tensor:
    """Values j / scale as the integers j; float32 unchanged when ``scale`` is None."""
    images = images.cpu().contiguous()
    if scale is None:
        return images
    stored = torch.empty(images.shape, dtype=_TYPES[stored_values(scale)["type"]])
    for start in range(0, images.numel(), _PACK_VALUES):
        values = images.view(-1)[start : start + _PACK_VALUES]
        scaled = values * float(scale)
        rounded = scaled.round()
        if not bool(((scaled - rounded).abs_() < 1e-2).all() and (rounded.abs() <= scale).all()):
            raise InvalidInputError(
                f"some values are not on the grid j/{scale} of the encoding's law",
                hint="save what the encoder made, before any augmentation",
            )
        stored.view(-1)[start : start + _PACK_VALUES] = rounded
    return stored


def unpack_values(stored: torch.Tensor, scale: int | None) -> torch.Tensor:
    """The float32 values of stored ones: j / scale, as the encoder computes them, bit for bit."""
    return stored if scale is None else stored.to(torch.float32).div_(float(scale))


def _slice(data: EncodedDataset, start: int, stop: int) -> EncodedDataset:
    if start == 0 and stop == len(data):
        return data
    images, labels = data.images[start:stop], data.labels[start:stop]
    return EncodedDataset(images, labels, data.class_names, data.config, data.scheme)


def _shard_bytes(folder: Path, record: ShardRecord) -> bytes:
    try:
        with (folder / record.name).open("rb") as stream:
            data = stream.read(record.bytes + 1)
    except OSError as error:
        raise _damaged(record.name, f"cannot be read ({error.strerror})") from error
    if len(data) != record.bytes:
        raise _damaged(record.name, f"not {record.bytes} bytes long, as the manifest says")
    return data


def _damaged(name: str, reason: str) -> IntegrityError:
    return IntegrityError(f"{name}: {reason}", hint="get the folder again from where it was encoded")


def _check_target(target: Path, *, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_dir():
        raise InvalidInputError(f"{target} is in the way and is not a folder", hint="choose another folder")
    if not any(target.iterdir()):
        return
    if not (target / MANIFEST_NAME).exists():
        raise InvalidInputError(f"{target} holds other files", hint="choose an empty or a new folder")
    if not overwrite:
        raise InvalidInputError(
            f"{target} already holds an encoded data set", hint="choose another, or overwrite=True"
        )


def _put_in_place(staging: Path, target: Path) -> None:
    """Swap the finished folder in; a kill in between leaves both whole, under hidden names beside it."""
    sync_folder(staging)
    retired = None
    if target.exists():
        retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
        target.replace(retired)
    staging.replace(target)
    sync_folder(target.parent)
    if retired is not None:
        shutil.rmtree(retired, ignore_errors=True)
