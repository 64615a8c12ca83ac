"""One NIfTI-1 or NIfTI-2 volume (.nii, .nii.gz) to grey pictures (extra ``nifti``).

    value = scl_slope · stored + scl_inter          no scaling where the slope is 0 or NaN

The volume is turned to the nearest right-anterior-superior frame by its sform, else its qform, and
cut as :mod:`.slicing` says. nibabel reads the header; the voxels are read here, so that memory fills as
bytes come and not as a header promises: a compressed file that ends early, goes on after its
last voxel, or fails its checksum is set aside, and so is one with NaN or infinite voxels, for their meaning
differs from tool to tool.

A picture's subject is the volume's: from the manifest, else from ``sub-NAME`` in the path (BIDS), else the
volume itself. Text fields of the header are read by nobody.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from . import grey
from .limits import Limits, UnreadableError, open_regular, read_exactly
from .slicing import Axis, Slicing
from .volume import planes, to_canonical

SUFFIXES = (".nii", ".nii.gz")
GZIP_MAGIC = b"\x1f\x8b"
MOST_DEFLATED = 1032
"""No deflate stream gives more bytes for one (two bits for 258)."""
LARGEST_OFFSET = 16 * 1024 * 1024
_HEADER_BYTES = {348: 1, 540: 2}  # sizeof_hdr: NIfTI version
_SUBJECT = re.compile(r"(?:^|/)(sub-[A-Za-z0-9]+)(?=[_/])")


@dataclass(frozen=True)
class Header:
    """What the header of a volume declares, checked against the caps and the file's length."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine: NDArray[np.float64]
    has_orientation: bool

    @property
    def num_bytes(self) -> int:
        """Of all voxels."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    def num_slices(self, slicing: Slicing) -> int:
        """Pictures the volume gives at most; UnreadableError where it gives none."""
        empty = np.broadcast_to(np.uint8(0), self.shape)
        return len(slicing.chosen(len(planes(to_canonical(empty, self.affine), slicing.axis or "axial"))))


def is_nifti_name(name: str) -> bool:
    """Whether a file's name ends in .nii or .nii.gz."""
    return name.lower().endswith(SUFFIXES)


def subject_of(name: str) -> str:
    """The subject of a volume without one in a manifest: ``sub-NAME`` in its path, else itself."""
    found = _SUBJECT.findall(name)
    return found[-1] if found else f"volume:{name}"


def require_nibabel() -> None:
    """Raise InvalidInputError when the extra is not installed."""
    try:
        import nibabel  # noqa: F401
    except ImportError:
        raise InvalidInputError(
            "the data are NIfTI volumes and nibabel is not installed",
            hint="pip install 'instahide-fl[nifti]'",
        ) from None


def read_header(path: Path, limits: Limits) -> Header:
    """The checked header of a volume, nothing else read. Raises UnreadableError."""
    with _opened(path, limits) as (stream, most):
        return _header(stream, most, limits)[0]


def read_pictures(path: Path, limits: Limits, slicing: Slicing) -> list[tuple[int, NDArray[np.uint8]]]:
    """(number, (H, W) picture) of each slice of a volume that ``slicing`` takes, from left, back or feet on.

    Raises:
        UnreadableError: not a volume of numbers, truncated, too large, or with voxels that are no numbers.
    """
    with _opened(path, limits) as (stream, most):
        header, position = _header(stream, most, limits)
        read_exactly(stream, header.offset - position)
        stored = read_exactly(stream, header.num_bytes).view(header.dtype)
        if stream.read(1):  # reaching the end also checks gzip's checksum
            raise UnreadableError("goes on after the last voxel its header declares")
    voxels = stored.astype(header.dtype.newbyteorder("="), copy=False).reshape(header.shape, order="F")
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        bad = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
        raise UnreadableError(f"{bad:,} voxels are NaN or infinite: write the value they stand for")
    low, high = _range(voxels, header, slicing)
    axis: Axis = slicing.axis or "axial"
    cut = planes(to_canonical(voxels, header.affine), axis)
    height, width = cut.shape[1:]
    if height * width > limits.max_pixels:
        raise UnreadableError(f"{width}x{height} pixels, above the cap of {limits.max_pixels:,}")
    pictures = []
    for number in slicing.chosen(len(cut)):
        with np.errstate(over="ignore"):  # to infinity, which the range then clips
            values = cut[number].astype(np.float64) * header.slope + header.intercept
        pictures.append((number, grey.spread(np.nan_to_num(values), low, high)))
    return pictures


def _range(voxels: NDArray[Any], header: Header, slicing: Slicing) -> tuple[float, float]:
    """(low, high) in scaled values; percentiles commute with a scaling, so the stored ones are taken."""
    if slicing.window is not None:
        return slicing.window
    below, above = slicing.percentiles or grey.PERCENTILES
    if header.slope < 0:
        below, above = 100 - above, 100 - below
    ends = grey.percentile_range(voxels.ravel(order="K"), (below, above))
    low, high = sorted(end * header.slope + header.intercept for end in ends)
    return low, high


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[tuple[Any, int]]:
    """The uncompressed stream, and the most bytes it can hold; every failure is an UnreadableError."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limits.max_volume_bytes:
                raise UnreadableError(f"{size:,} bytes, above the cap of {limits.max_volume_bytes:,}")
            compressed = file.peek(2)[:2] == GZIP_MAGIC
            if compressed:
                with gzip.GzipFile(fileobj=file) as stream:
                    yield stream, size * MOST_DEFLATED
            else:
                yield file, size
    except UnreadableError:
        raise
    except MemoryError:
        raise UnreadableError("more voxels than there is memory for") from None
    except Exception as error:  # only the type: messages of the parser quote header values
        raise UnreadableError(f"corrupt or truncated NIfTI ({type(error).__name__})") from None


def _header(stream: IO[bytes], most: int, limits: Limits) -> tuple[Header, int]:
    """The header, and how many bytes of the stream it took."""
    from nibabel import Nifti1Header, Nifti2Header

    start = read_exactly(stream, 4).tobytes()
    version = _HEADER_BYTES.get(int.from_bytes(start, "little")) or _HEADER_BYTES.get(
        int.from_bytes(start, "big")
    )
    if version is None:
        raise UnreadableError("not a NIfTI file")
    kind: Any = Nifti1Header if version == 1 else Nifti2Header
    block = start + read_exactly(stream, kind.sizeof_hdr - 4).tobytes()
    raw = kind(block, check=True)
    if not bytes(raw["magic"]).startswith(b"n+"):
        raise UnreadableError("the header of a .hdr/.img pair: convert it to one .nii.gz file")
    dtype = raw.get_data_dtype()
    if dtype.names is not None or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise UnreadableError("voxels are colours, complex or extended numbers, not plain ones")
    slope, intercept = raw.get_slope_inter()
    offset = int(raw.get_data_offset())
    if not len(block) <= offset <= LARGEST_OFFSET:
        raise UnreadableError("the header puts the voxels where they cannot be")
    header = Header(
        shape=_three_axes(raw.get_data_shape()),
        dtype=dtype,
        offset=offset,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        affine=np.asarray(raw.get_best_affine(), dtype=np.float64),
        has_orientation=int(raw["sform_code"]) > 0 or int(raw["qform_code"]) > 0,
    )
    if header.num_bytes > limits.max_volume_bytes:
        raise UnreadableError(
            f"{header.num_bytes:,} bytes of voxels, above the cap of {limits.max_volume_bytes:,}"
        )
    if header.offset + header.num_bytes > most:
        raise UnreadableError(f"declares {header.num_bytes:,} bytes of voxels, more than the file can hold")
    return header, len(block)


def _three_axes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Axes of length 1 at the end are dropped or added; several volumes in one file are refused."""
    sizes = [int(size) for size in shape]
    if not sizes or min(sizes) < 1:
        raise UnreadableError("the header declares no voxels")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) > 3:
        raise UnreadableError(
            f"{len(sizes)}-D: {sizes[3]:,} volumes in one file; write the one meant to a file of its own"
        )
    i, j, k = (*sizes, 1, 1)[:3]
    return i, j, k
