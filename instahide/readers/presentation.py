"""One size, one channel count, 8 bits: how decoded pictures are made to fit one array.

Nothing is changed unless asked for. ``image_size=S`` makes every picture S×S: the largest
centred square is cut out and resized (``fit="crop"``), or the whole picture is resized and
centred on black (``fit="pad"``). Resizing is bilinear with antialiasing; a picture that
already is S×S keeps its exact pixels. ``channels=1`` takes the ITU-R 601 luma of colour
pictures, ``channels=3`` repeats grey ones.

Deeper pixels are scaled to 8 bits over their whole range, rounded to the nearest, never
wrapped: ``round(255 · x / (2^bit_depth − 1))``. Scanners often store 10 or 12 bits in a 16-bit
file; ``bit_depth=12`` says so, and a value beyond it sets the file aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InvalidInputError
from .limits import UnreadableError

Fit = Literal["crop", "pad"]
MAX_IMAGE_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """How pictures are brought to one form; see the module's page for each choice."""

    image_size: int | None = None
    fit: Fit = "crop"
    channels: int | None = None
    bit_depth: int = 16

    def __post_init__(self) -> None:
        size = self.image_size
        if size is not None and (type(size) is not int or not 1 <= size <= MAX_IMAGE_SIZE):
            raise InvalidInputError(
                f"image_size is {size!r}", hint=f"give a whole number of pixels from 1 to {MAX_IMAGE_SIZE}"
            )
        if self.fit not in ("crop", "pad"):
            raise InvalidInputError(f"fit is {self.fit!r}", hint='choose "crop" or "pad"')
        if self.channels not in (None, 1, 3):
            raise InvalidInputError(f"channels is {self.channels!r}", hint="choose 1 (grey) or 3 (colour)")
        if type(self.bit_depth) is not int or not 8 <= self.bit_depth <= 16:
            raise InvalidInputError(f"bit_depth is {self.bit_depth!r}", hint="give 8 to 16 bits")

    @property
    def changes_pixels(self) -> bool:
        return self.image_size is not None or self.channels is not None


def present(pixels: NDArray[np.uint8], how: Presentation) -> NDArray[np.uint8]:
    """``pixels`` (H, W) or (H, W, 3) in the form asked for; the same array when it fits already."""
    pixels = _with_channels(pixels, how.channels)
    size = how.image_size
    if size is None or pixels.shape[:2] == (size, size):
        return pixels
    return _cropped(pixels, size) if how.fit == "crop" else _padded(pixels, size)


def _with_channels(pixels: NDArray[np.uint8], channels: int | None) -> NDArray[np.uint8]:
    if channels == 3 and pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    if channels == 1 and pixels.ndim == 3:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    return pixels


def _cropped(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(
        image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    )


def _padded(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    scale = size / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    resized = np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR))
    canvas = np.zeros((size, size, *pixels.shape[2:]), dtype=np.uint8)
    top, left = (size - rows) // 2, (size - columns) // 2
    canvas[top : top + rows, left : left + columns] = resized
    return canvas


def to_eight_bits(values: NDArray[Any], bit_depth: int) -> NDArray[np.uint8]:
    """Unsigned ``values`` of ``bit_depth`` bits, scaled to 0..255 and rounded to the nearest."""
    maximum = (1 << bit_depth) - 1
    if values.size and (int(values.min()) < 0 or int(values.max()) > maximum):
        raise UnreadableError(
            f"values from {int(values.min())} to {int(values.max())} do not fit in {bit_depth} bits"
        )
    return ((values.astype(np.uint32) * 255 + maximum // 2) // maximum).astype(np.uint8)
