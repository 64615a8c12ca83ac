"""A picture of encodings: what the eye sees, and what an attacker sees.

Each sample is shown twice, side by side: as encoded (−1 black, +1 white), which looks like
noise, and as its absolute value (0 black, 1 white). The sign mask does nothing but flip signs,
so the absolute value is public to whoever has the encoding; the blurred shapes in it are what
the attacks start from.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .atomic import atomic_path
from .errors import InvalidInputError

MAX_SAMPLES = 256
_GAP = 2  # pixels between pictures
_MIN_SIDE = 64  # small images are enlarged by a whole factor to about this many pixels
_PAPER = 255


def picture_grid(images: NDArray[np.float32], *, columns: int = 4) -> NDArray[np.uint8]:
    """One picture (height, width, 3) of encodings (n, C, H, W) in [-1, 1]: signed and absolute pairs.

    Raises:
        InvalidInputError: no images, more than 256, or not of shape (n, 1 or 3, H, W).
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not 1 <= len(images) <= MAX_SAMPLES:
        raise InvalidInputError(
            f"a grid of shape {images.shape} cannot be drawn",
            hint=f"give 1 to {MAX_SAMPLES} images (n, C, H, W), C 1 or 3",
        )
    signed, absolute = _pixels((images + 1.0) / 2.0), _pixels(np.abs(images))
    height, width = signed.shape[1:3]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell_height, cell_width = height + _GAP, 2 * width + 3 * _GAP
    grid = np.full((rows * cell_height + _GAP, columns * cell_width + _GAP, 3), _PAPER, np.uint8)
    for i, (left, right) in enumerate(zip(signed, absolute, strict=True)):
        top, edge = (i // columns) * cell_height + _GAP, (i % columns) * cell_width + _GAP
        grid[top : top + height, edge : edge + width] = left
        middle = edge + width + _GAP
        grid[top : top + height, middle : middle + width] = right
    return grid


def write_picture_grid(
    images: NDArray[np.float32], path: str | os.PathLike[str], *, columns: int = 4
) -> None:
    """Write :func:`picture_grid` as a PNG, in one step.

    Raises:
        InvalidInputError: as :func:`picture_grid`, or the folder cannot be written.
    """
    from PIL import Image

    picture = Image.fromarray(picture_grid(images, columns=columns))
    try:
        with atomic_path(Path(path), mode=0o600) as temporary:
            picture.save(temporary, format="PNG")
    except OSError as error:
        raise InvalidInputError(
            f"picture {path} cannot be written: {error.strerror or error}", hint="choose another file"
        ) from error


def _pixels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(n, C, H, W) in [0, 1] to enlarged 8-bit (n, H', W', 3)."""
    pixels = np.clip(np.rint(values * 255.0), 0, 255).astype(np.uint8)
    pixels = np.moveaxis(np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:])), 1, 3)
    factor = max(1, _MIN_SIDE // max(pixels.shape[1:3]))
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)
