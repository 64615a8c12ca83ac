"""One DICOM file to 8-bit pixels (extra ``dicom``).

The grey pipeline is that of DICOM PS3.3 C.11: stored values, modality rescale (slope and
intercept, or its table), value-of-interest window, then inversion for MONOCHROME1, so that
white is always what the modality shows as white. With several windows the first is taken;
without any, the range from the 0.5th to the 99.5th percentile (padding left out) is spread over
0..255. Colour (RGB, YBR, palette) keeps its values.

One file is one image: multi-frame objects are set aside, for their frames are not independent
examples. Objects that are no pictures (structured reports, dose grids, segmentations ...) too.

PatientID is handed back for ``ImageSet.subject_ids`` and goes nowhere else; no reason text
quotes a header value other than sizes.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from .limits import Limits, UnreadableError

SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
NOT_PICTURES = frozenset(
    {
        "SR",
        "RTDOSE",
        "RTSTRUCT",
        "RTPLAN",
        "RTRECORD",
        "SEG",
        "REG",
        "PR",
        "KO",
        "AU",
        "ECG",
        "HD",
        "DOC",
        "FID",
    }
)
GREY = ("MONOCHROME1", "MONOCHROME2")
DEFLATED_SYNTAX = b"1.2.840.10008.1.2.1.99"
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5


def require_pydicom() -> None:
    """Raise InvalidInputError when the extra is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise InvalidInputError(
            "the folder holds DICOM files and pydicom is not installed",
            hint="pip install 'instahide-fl[dicom]'",
        ) from None


def looks_like_dicom(head: bytes) -> bool:
    """Whether the first 132 bytes are a DICOM preamble and its mark."""
    return len(head) >= 132 and head[128:132] == b"DICM"


def decode_dicom(data: bytes, limits: Limits) -> tuple[NDArray[np.uint8], str | None]:
    """Pixels (H, W) or (H, W, 3) uint8, and the PatientID (None when empty).

    Raises:
        UnreadableError: no picture, several frames, too many pixels, or bytes pydicom cannot read.
    """
    import pydicom

    if not looks_like_dicom(data[:132]):
        raise UnreadableError("not a DICOM file (no DICM mark)")
    # Inflated whole before any header can be read, so no cap could hold.
    if DEFLATED_SYNTAX in data:
        raise UnreadableError("deflated transfer syntax is not accepted")
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        _check_header(dataset, limits)
        pixels = _pixels(dataset)
        subject = str(dataset.get("PatientID", "") or "").strip()
    except UnreadableError:
        raise
    except Exception as error:  # only the type: messages of the decoder quote header values
        raise UnreadableError(f"corrupt or unsupported DICOM ({type(error).__name__})") from None
    return pixels, subject or None


def _check_header(dataset: Any, limits: Limits) -> None:
    modality = str(dataset.get("Modality", ""))
    if modality in NOT_PICTURES:
        raise UnreadableError(f"{modality} object, not a picture")
    if not any(key in dataset for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UnreadableError("DICOM object without an image")
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames != 1:
        raise UnreadableError(f"{frames} frames in one file: export single frames")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > limits.max_pixels:
        raise UnreadableError(f"{columns}x{rows} pixels, above the cap of {limits.max_pixels:,}")


def _pixels(dataset: Any) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_color_lut, pixel_array

    stored: NDArray[Any] = pixel_array(dataset)
    kind = str(dataset.PhotometricInterpretation)
    if kind in GREY:
        grey = _window(_rescaled(stored, dataset), stored, dataset)
        return 255 - grey if kind == "MONOCHROME1" else grey
    bits = int(dataset.BitsStored)
    if kind == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        bits = 8 * stored.dtype.itemsize
    if stored.ndim != 3 or stored.shape[2] != 3 or np.issubdtype(stored.dtype, np.signedinteger):
        raise UnreadableError(f"colour image of shape {stored.shape} is not supported")
    return _to_byte(stored.astype(np.float64) * (255 / (2**bits - 1)))


def _rescaled(stored: NDArray[Any], dataset: Any) -> NDArray[np.float64]:
    from pydicom.pixels import apply_modality_lut

    if stored.ndim != 2:
        raise UnreadableError(f"grey image of shape {stored.shape} is not supported")
    values: NDArray[np.float64] = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    if not np.isfinite(values).all():
        raise UnreadableError("NaN or infinite pixel values")
    return values


def _window(values: NDArray[np.float64], stored: NDArray[Any], dataset: Any) -> NDArray[np.uint8]:
    """Values to 0..255 through the VOI table, the VOI window, or the percentiles."""
    if dataset.get("VOILUTSequence"):
        from pydicom.pixels import apply_voi_lut

        # Descriptor: entries, first value mapped, bits of each entry (PS3.3 C.11.2.1.1).
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        table = np.asarray(apply_voi_lut(values.astype(np.int64), dataset, prefer_lut=True), dtype=np.float64)
        return _to_byte(table * (255 / (2**bits - 1)))
    if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        center, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
        return _to_byte(255 * _voi(values, center, width, str(dataset.get("VOILUTFunction", "") or "LINEAR")))
    padding = dataset.get("PixelPaddingValue")
    counted = values if padding is None else values[stored != int(padding)]
    low, high = np.percentile(counted if counted.size else values, (LOW_PERCENTILE, HIGH_PERCENTILE))
    if high <= low:  # nearly constant: the few outliers are all there is to show
        low, high = float(values.min()), float(values.max())
    return _to_byte((values - low) * (255 / (high - low))) if high > low else np.zeros(values.shape, np.uint8)


def _voi(values: NDArray[np.float64], center: float, width: float, function: str) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, to 0..1; values beyond are clipped by the caller."""
    if not (math.isfinite(center) and math.isfinite(width) and width > 0):
        raise UnreadableError("the display window has no width")
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values - center) / width, -700, 700)
        return np.asarray(1 / (1 + np.exp(exponent)), dtype=np.float64)
    if function == "LINEAR_EXACT":
        return (values - center) / width + 0.5
    if width <= 1:  # the linear window of width 1 is a step at center − 0.5
        return (values > center - 0.5).astype(np.float64)
    return (values - (center - 0.5)) / (width - 1) + 0.5


def _first(value: Any) -> float:
    return float(value if isinstance(value, (int, float, str)) else value[0])


def _to_byte(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)
