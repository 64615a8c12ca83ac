"""Small private images and encodings for the storage tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from instahide.encoded_dataset import EncodedDataset
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.images import ImageSet


def private_images(count: int = 40, *, side: int = 8, seed: int = 0) -> ImageSet:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count) % 3, ("benign", "malignant", "normal"))


def encoded(count: int = 40, **law: object) -> EncodedDataset:
    return Encoder(EncoderConfig(**law), private=private_images(count)).encode_epoch()  # type: ignore[arg-type]


def everything_in(folder: Path) -> bytes:
    """All bytes of all files below ``folder``."""
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
