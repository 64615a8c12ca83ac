"""Files of the recovery attack: a pairing, the truth, a sign network.

Axes: N encodings, n private images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError
from ...images import ImageSet
from ..encodings_file import read_array
from ..view import AttackerView
from .sign_network_file import load_sign_network, save_sign_network
from .sign_recovery import SignNetwork, train_sign_network

IMAGE_NAMES = ("images", "x")


def read_pairing(path: Path, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """``private_rows`` and ``private_coefficients`` (or ``coefficients``, those of the private images first).

    Raises:
        InvalidInputError: not (N, k_priv) each, or not integers and numbers.
    """
    rows = read_array(path, ("private_rows",))
    coefficients = read_array(path, ("private_coefficients", "coefficients"))
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind not in "iu" or not np.all(rows >= 0):
        raise InvalidInputError(
            f"private_rows in {path.name} are {rows.dtype} of shape {rows.shape} for {count} encodings",
            hint="give the private images of each encoding, integers (N, 2) from 0",
        )
    shape = coefficients.shape
    if coefficients.ndim != 2 or len(coefficients) != count or shape[1] < rows.shape[1]:
        raise InvalidInputError(
            f"coefficients in {path.name} have shape {shape} for private_rows {rows.shape}",
            hint="give the coefficient of each private image, (N, 2)",
        )
    values = np.asarray(coefficients[:, : rows.shape[1]], dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or (values > 1).any():
        raise InvalidInputError(
            f"coefficients in {path.name} are not all in [0, 1]", hint="they are shares of an encoding"
        )
    return rows.astype(np.int64), values


def read_truth(path: Path, shape: tuple[int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Private images (n, C, H, W) uint8, and ``private_rows`` if the file has them.

    Raises:
        InvalidInputError: images of another shape than the encodings, or not 8-bit.
    """
    images = ImageSet(read_array(path, IMAGE_NAMES))
    if images.image_shape != shape:
        raise InvalidInputError(
            f"the true images are {images.image_shape}, the encodings {shape} (C, H, W)",
            hint="give the images as they were encoded",
        )
    try:
        rows: NDArray[Any] | None = read_array(path, ("private_rows",)) if path.suffix == ".npz" else None
    except InvalidInputError:
        rows = None
    return images.images, None if rows is None else rows.astype(np.int64)


def network_at(
    path: Path | None,
    release: AttackerView,
    training_seconds: float,
    seed: int,
    progress: Callable[..., None] | None = None,
) -> SignNetwork | None:
    """The sign network stored at ``path``, trained and stored if nothing is there; ``None``: no path."""
    if path is None or not release.config.has_sign_mask:
        return None
    if path.exists():
        network = load_sign_network(path)
        if network.channels != release.public_images.image_shape[0]:
            raise InvalidInputError(
                f"the sign network in {path.name} is for {network.channels} channels",
                hint="train another: give a path where nothing is",
            )
        return network
    network = train_sign_network(
        release.public_images,
        release.config,
        scheme=release.scheme,
        public_pool=release.public_pool,
        cpu_seconds=training_seconds,
        seed=seed,
        progress=progress,
    )
    save_sign_network(network, path)
    return network
