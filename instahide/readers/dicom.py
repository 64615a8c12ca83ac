"""One DICOM file to 8-bit pixels (extra ``dicom``).

The grey pipeline is that of DICOM PS3.3 C.11: stored values, modality rescale (slope and
intercept, or its table), value-of-interest window, then inversion for MONOCHROME1, so that
white is always what the modality shows as white. With several windows the first is taken;
without any, the range from the 0.5th to the 99.5th percentile (padding left out) is spread over
0..255. Colour (RGB, YBR, palette) keeps its values.

One file is one image here; files that are slices of one volume, and frames with places in space, are
read together by :mod:`.dicom_series`. Other multi-frame objects (films) are set aside, for their frames
are not independent examples. Objects that are no pictures (structured reports, dose grids, segmentations
...) too.

PatientID is handed back for ``ImageSet.subject_ids`` and goes nowhere else; no reason text
quotes a header value other than sizes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from .grey import percentile_range, spread, to_byte
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
DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"


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
    with decoding():
        dataset = parse(data, limits)
        frames = num_frames(dataset)
        if frames != 1:
            raise UnreadableError(f"{frames} frames in one file: export single frames")
        return _pixels(dataset), subject_of(dataset)


@contextmanager
def decoding() -> Iterator[None]:
    """Whatever fails on hostile bytes becomes an UnreadableError."""
    try:
        yield
    except UnreadableError:
        raise
    except MemoryError:
        raise UnreadableError("more pixels than there is memory for") from None
    except Exception as error:  # only the type: messages of the decoder quote header values
        raise UnreadableError(f"corrupt or unsupported DICOM ({type(error).__name__})") from None


def parse(data: bytes, limits: Limits) -> Any:
    """The data set of a file that holds an image within the caps; call it inside :func:`decoding`."""
    import pydicom

    if not looks_like_dicom(data[:132]):
        raise UnreadableError("not a DICOM file (no DICM mark)")
    # Inflated whole before any header can be read, so no cap could hold.
    if DEFLATED_SYNTAX in data:
        raise UnreadableError("deflated transfer syntax is not accepted")
    dataset = pydicom.dcmread(io.BytesIO(data))
    _check_header(dataset, limits)
    return dataset


def subject_of(dataset: Any) -> str | None:
    """The PatientID; None when empty."""
    return str(dataset.get("PatientID", "") or "").strip() or None


def num_frames(dataset: Any) -> int:
    """Frames in the file, 1 where it does not say."""
    return int(dataset.get("NumberOfFrames", 1) or 1)


def _check_header(dataset: Any, limits: Limits) -> None:
    modality = str(dataset.get("Modality", ""))
    if modality in NOT_PICTURES:
        raise UnreadableError(f"{modality} object, not a picture")
    if not any(key in dataset for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UnreadableError("DICOM object without an image")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > limits.max_pixels:
        raise UnreadableError(f"{columns}x{rows} pixels, above the cap of {limits.max_pixels:,}")


def stored_values(dataset: Any) -> NDArray[Any]:
    """The pixels as stored, decompressed: (H, W), (H, W, 3), or with the frames in front."""
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        known = syntax.name if syntax.name != str(syntax) else "something unknown"
        try:
            is_available = get_decoder(syntax).is_available
        except NotImplementedError:
            raise UnreadableError(f"compressed as {known}, which is not supported") from None
        if not is_available:
            raise UnreadableError(f"compressed as {known}, for which no decoder is installed: {DECODERS}")
    try:
        return np.asarray(pixel_array(dataset))
    except Exception:
        if syntax.is_compressed and "JPEG" in syntax.name and int(dataset.BitsStored) > 8:
            kind = f"{syntax.name} of {int(dataset.BitsStored)} bits"
            raise UnreadableError(f"damaged, or {kind} needs another decoder: {DECODERS}") from None
        raise


def _pixels(dataset: Any) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_color_lut

    stored = stored_values(dataset)
    kind = str(dataset.PhotometricInterpretation)
    if kind in GREY:
        return upright(by_own_window(rescaled(stored, dataset), stored, dataset), dataset)
    bits = int(dataset.BitsStored)
    if kind == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        bits = 8 * stored.dtype.itemsize
    if stored.ndim != 3 or stored.shape[2] != 3 or np.issubdtype(stored.dtype, np.signedinteger):
        raise UnreadableError(f"colour image of shape {stored.shape} is not supported")
    return to_byte(stored.astype(np.float64) * (255 / (2**bits - 1)))


def upright(grey: NDArray[np.uint8], dataset: Any) -> NDArray[np.uint8]:
    """White for what the modality shows as white: MONOCHROME1 is stored the other way round."""
    return 255 - grey if str(dataset.PhotometricInterpretation) == "MONOCHROME1" else grey


def rescaled(stored: NDArray[Any], dataset: Any) -> NDArray[np.float64]:
    """Stored (H, W) to measured values: slope and intercept, or the modality's table."""
    from pydicom.pixels import apply_modality_lut

    if stored.ndim != 2:
        raise UnreadableError(f"grey image of shape {stored.shape} is not supported")
    values: NDArray[np.float64] = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    if not np.isfinite(values).all():
        raise UnreadableError("NaN or infinite pixel values")
    return values


def without_padding(values: NDArray[Any], stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """(M,) values that count for a percentile: all but the padding, or all where all is padding."""
    padding = dataset.get("PixelPaddingValue")
    counted = values if padding is None else values[stored != int(padding)]
    return (counted if counted.size else values).ravel()


def own_window(dataset: Any) -> tuple[Any, ...] | None:
    """What the file says on how it wants to be shown, to be compared; None where it says nothing."""
    if dataset.get("VOILUTSequence"):
        return ("table",)
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return None
    function = str(dataset.get("VOILUTFunction", "") or "LINEAR")
    return _first(dataset.WindowCenter), _first(dataset.WindowWidth), function


def by_own_window(values: NDArray[np.float64], stored: NDArray[Any], dataset: Any) -> NDArray[np.uint8]:
    """Values to 0..255 through the VOI table, the VOI window, or the percentiles."""
    window = own_window(dataset)
    if window == ("table",):
        from pydicom.pixels import apply_voi_lut

        # Descriptor: entries, first value mapped, bits of each entry (PS3.3 C.11.2.1.1).
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        table = np.asarray(apply_voi_lut(values.astype(np.int64), dataset, prefer_lut=True), dtype=np.float64)
        return to_byte(table * (255 / (2**bits - 1)))
    if window is not None:
        center, width, function = window
        return to_byte(255 * _voi(values, center, width, function))
    return spread(values, *percentile_range(without_padding(values, stored, dataset)))


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
