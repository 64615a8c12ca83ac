"""One picture file to 8-bit pixels: PNG, JPEG, BMP, TIFF, PGM/PPM, WebP, and nothing else.

The formats are an explicit list: a file that claims another one is not handed to its decoder,
whatever its name. Size is read from the header and checked before decoding. The EXIF
orientation is applied, so a radiograph photographed sideways arrives upright. An alpha channel
is dropped when it is opaque throughout and refused when it hides something. A file with several
pages is refused, for no page is the obvious one.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .limits import Limits, UnreadableError
from .presentation import to_eight_bits

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".webp"})
ORIENTATION = 0x0112  # EXIF 2.3 tag: which side of the stored picture is up
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "PPM", "WEBP")


def decode_picture(data: bytes, limits: Limits, bit_depth: int) -> tuple[NDArray[np.uint8], str]:
    """Pixels (H, W) or (H, W, 3) uint8, and the file's own depth ("uint8" or "uint16").

    Raises:
        UnreadableError: not one of the formats, too many pixels, truncated, or a kind of picture that
            has no faithful 8-bit form.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > limits.max_pixels:
            raise UnreadableError(f"{width}x{height} pixels, above the cap of {limits.max_pixels:,}")
        if image.format != "MPO" and getattr(image, "n_frames", 1) != 1:
            raise UnreadableError("several pages or frames in one file")
        image.load()
        if image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        return _to_array(image, bit_depth)
    except UnreadableError:
        raise
    except UnidentifiedImageError:
        raise UnreadableError("not a picture in a supported format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableError(f"pixels above the cap of {limits.max_pixels:,}") from None
    except Exception as error:  # the decoders fail on hostile bytes in many ways; all mean one thing
        raise UnreadableError(f"corrupt or truncated ({type(error).__name__})") from None


def _to_array(image: Image.Image, bit_depth: int) -> tuple[NDArray[np.uint8], str]:
    mode = image.mode
    if mode in ("L", "RGB"):
        return np.asarray(image), "uint8"
    if mode == "1":
        return np.asarray(image.convert("L")), "uint8"
    if mode in ("P", "CMYK", "YCbCr"):
        return np.asarray(image.convert("RGB")), "uint8"
    if mode in ("RGBA", "LA"):
        pixels = np.asarray(image)
        if int(pixels[..., -1].min()) < 255:
            raise UnreadableError("transparent pixels: flatten the picture first")
        return np.ascontiguousarray(pixels[..., 0] if mode == "LA" else pixels[..., :3]), "uint8"
    if mode == "I" or mode.startswith("I;16"):
        return to_eight_bits(np.asarray(image), bit_depth), "uint16"
    raise UnreadableError(f"pixel type {mode!r} has no plain 8-bit form")
