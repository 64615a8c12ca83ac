"""What an auditor of an implementation holds: the released file as it is, and the published law.

Axes: N encodings, K classes, C channels, H rows, W columns, P public images.

Other than :class:`instahide.attacks.view.AttackerView`, which attacks *images*, this view keeps the
values in the type they were stored in: whether an encoding is decodable by arithmetic depends on
the last bits of a float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...encoded_dataset import EncodedDataset
from ...encoder_config import EncoderConfig
from ...errors import InvalidInputError
from ...readers.limits import reading
from ...readers.npy_format import list_members
from ...storage import EncodedFolder
from ..encodings_file import ENCODING_NAMES, LABEL_NAMES, MAX_BYTES, read_array

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Release:
    """Encodings and soft labels as published, the law, and what else the threat model shows.

    Args:
        encodings: (N, C, H, W) float32 or float64, in the order of the file.
        labels: (N, K) soft labels, or ``None``.
        config: the published law.
        scheme: ``"inside"`` or ``"cross"``.
        epochs: how many releases of each image the N rows hold, if published; 1 if unknown.
        in_data_order: rows follow the data within each epoch, so row i of every epoch is one image.
        public_pool: (P, C, H, W) uint8, the pool of the cross scheme in its published order.
        pixel_values: (C, 256) what the 8-bit values 0..255 of a channel became before mixing, if it is
            not p / 127.5 − 1. Part of the published code.

    Raises:
        InvalidInputError: wrong rank or type, values that are not finite, lengths that differ.
    """

    encodings: Floats
    labels: Floats | None
    config: EncoderConfig
    scheme: str
    epochs: int = 1
    in_data_order: bool = True
    public_pool: NDArray[np.uint8] | None = None
    pixel_values: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        _check_encodings(self.encodings)
        if self.labels is not None:
            _check_labels(self.labels, len(self.encodings))
        if self.scheme not in ("inside", "cross"):
            raise InvalidInputError(f"scheme is {self.scheme!r}", hint="use inside or cross")
        if self.epochs < 1 or len(self.encodings) % self.epochs:
            raise InvalidInputError(
                f"{len(self.encodings)} rows are no {self.epochs} epochs", hint="each epoch has as many rows"
            )
        if self.public_pool is not None and self.public_pool.shape[1:] != self.encodings.shape[1:]:
            raise InvalidInputError(
                f"public images are {self.public_pool.shape[1:]}, encodings {self.encodings.shape[1:]}",
                hint="resize the public images to the encodings' shape",
            )

    def __len__(self) -> int:
        return len(self.encodings)

    @property
    def num_private(self) -> int:
        """Private images in a row: all k in the inside scheme."""
        return self.config.num_mixed if self.scheme == "inside" else self.config.num_private

    @property
    def levels(self) -> NDArray[np.float64]:
        """(C, 256) the value of each 8-bit pixel before mixing."""
        if self.pixel_values is not None:
            return self.pixel_values
        symmetric = (2.0 * np.arange(256) - 255.0) / 255.0
        return np.broadcast_to(symmetric, (self.encodings.shape[1], 256))

    @classmethod
    def of(cls, encoded: EncodedDataset, *, epochs: int = 1, in_data_order: bool = True,
           public_pool: NDArray[np.uint8] | None = None) -> Release:  # fmt: skip
        """The release of someone who was sent ``encoded``."""
        return cls(
            encoded.images.numpy(), encoded.labels.numpy(), encoded.config, encoded.scheme, epochs,
            in_data_order, public_pool,
        )  # fmt: skip

    @classmethod
    def read(
        cls,
        path: Path,
        *,
        labels: Path | None = None,
        config: EncoderConfig | None = None,
        scheme: str = "cross",
        epochs: int = 1,
        in_data_order: bool = True,
        public_pool: NDArray[np.uint8] | None = None,
        pixel_values: NDArray[np.float64] | None = None,
    ) -> Release:
        """A folder of ``instahide encode``, which says its law, or an ``.npz`` / ``.npy`` of anybody.

        An ``.npz`` holds ``encodings`` (N, C, H, W) or (N, H, W, C) and, if published, ``labels``.

        Args:
            labels: an array file of their own.
            config, scheme, epochs, in_data_order: of an array file; a folder knows.

        Raises:
            InvalidInputError: no such file, not such a file, or no law for an array file.
            IntegrityError: a damaged file.
        """
        if path.is_dir():
            return _read_folder(path, public_pool)
        if config is None:
            raise InvalidInputError(
                f"{path.name} does not say how it was encoded", hint="say how many images were mixed"
            )
        encodings = _channels_first(read_array(path, ENCODING_NAMES))
        weights = _labels_of(path, labels)
        return cls(encodings, weights, config, scheme, epochs, in_data_order, public_pool, pixel_values)


def _labels_of(path: Path, labels: Path | None) -> NDArray[Any] | None:
    if labels is None and (path.suffix == ".npy" or not holds_array(path, LABEL_NAMES)):
        return None
    return read_array(labels or path, LABEL_NAMES)


def holds_array(path: Path, names: tuple[str, ...]) -> bool:
    """Whether an ``.npz`` has an array of one of ``names``."""
    with reading(path, "an .npz file"):
        return not set(names).isdisjoint(list_members(path))


def _read_folder(path: Path, public_pool: NDArray[np.uint8] | None) -> Release:
    """As many whole epochs as fit in ``MAX_BYTES``; of a larger epoch its first rows."""
    folder = EncodedFolder(path)
    manifest = folder.manifest
    held = max(1, MAX_BYTES // (4 * math.prod(manifest.image_shape)))
    epochs = min(manifest.epochs, max(1, held // manifest.images_per_epoch))
    rows = min(held, epochs * manifest.images_per_epoch)
    images, labels, done = [], [], 0
    for shard in folder.shards():
        images.append(shard.images.numpy())
        labels.append(shard.labels.numpy())
        done += len(shard)
        if done >= rows:
            break
    in_order = manifest.row_order == "data"
    return Release(
        np.concatenate(images)[:rows],
        np.concatenate(labels)[:rows],
        folder.config,
        manifest.scheme,
        epochs,
        in_order,
        public_pool,
    )


def _channels_first(encodings: NDArray[Any]) -> NDArray[Any]:
    if encodings.ndim == 3:
        return encodings[:, None]
    if encodings.ndim == 4 and encodings.shape[1] not in (1, 3) and encodings.shape[3] in (1, 3):
        return np.moveaxis(encodings, 3, 1)
    return encodings


def _check_encodings(encodings: Floats) -> None:
    if encodings.ndim != 4 or encodings.dtype not in (np.float32, np.float64) or 0 in encodings.shape:
        raise InvalidInputError(
            f"encodings are {encodings.dtype} of shape {encodings.shape}",
            hint="a float32 or float64 array (N, C, H, W) with at least one row is expected",
        )
    if not np.isfinite(encodings).all():
        raise InvalidInputError("encodings hold values that are NaN or infinite", hint="check the file")


def _check_labels(labels: Floats, count: int) -> None:
    if labels.ndim != 2 or labels.shape[0] != count or not np.issubdtype(labels.dtype, np.floating):
        raise InvalidInputError(
            f"labels are {labels.dtype} of shape {labels.shape} for {count} encodings",
            hint="a float array (N, K), one row of class weights for each encoding, is expected",
        )
    if not np.isfinite(labels).all() or (labels < 0).any():
        raise InvalidInputError("labels hold values that are negative or no numbers", hint="check the file")
