"""The loops in C behind the exact kernels, where they were built; the torch code gives the same numbers
elsewhere.

``_kernel_loops.c`` is compiled at installation when there is a C compiler (GCC gives the AVX-512 and AVX2
versions, any other compiler the plain one) and loaded with ctypes, which lets go of the interpreter during a
call. :func:`active_path` tells which code runs; ``INSTAHIDE_KERNELS=torch`` in the environment switches the C
code off.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .arc_cosine import slope_and_bend_polynomials
from .built_library import built_library

LANES = {torch.float32: 16, torch.float64: 8}
_DEGREES = {torch.float32: (6, 4), torch.float64: (18, 16)}
_FULLY_CONNECTED_POINTERS = ("row_scale", "column_scale", "positive", "negative", "pieces")
_SUFFIX = {torch.float32: "single", torch.float64: "double"}
_MACHINES = {0: "c", 3: "c, AVX2", 4: "c, AVX-512"}


def active_path() -> str:
    """Which code computes on the CPU: ``"c, AVX-512"``, ``"c, AVX2"``, ``"c"`` or ``"torch"``."""
    return "torch" if _library() is None else _MACHINES[_machine()]


def has_loops() -> bool:
    return _library() is not None


@dataclass(frozen=True)
class Recursion:
    """What the C code must know of a convolutional kernel; P = height × width places, R ReLUs.

    ``row_weights`` (2H − 1, H) and ``column_weights`` (2W − 1, W): of the last sum, for each displacement
    −(H − 1) .. H − 1 and each place of the first image; displacements beyond ``reach`` are left out.
    """

    height: int
    width: int
    channels: int
    num_relus: int
    reach: tuple[int, int]
    tangent: bool
    first_fixed: bool
    last_fixed: bool
    row_weights: torch.Tensor
    column_weights: torch.Tensor


def aligned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor that starts on a cache line, as the vectors of the C code must."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = torch.empty(size + 64, dtype=torch.uint8)
    start = -raw.data_ptr() % 64
    return raw[start : start + size].view(dtype).view(shape)


@dataclass(frozen=True)
class Prepared:
    """Images (N, C, P) with norms and reciprocal norms side by side (N, R, P, 2), all of one type."""

    images: torch.Tensor
    scales: torch.Tensor

    @property
    def norms(self) -> torch.Tensor:
        return self.scales[..., 0]

    @property
    def inverses(self) -> torch.Tensor:
        return self.scales[..., 1]

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, first: int, last: int) -> Prepared:
        return Prepared(self.images[first:last], self.scales[first:last])


class ColumnBlock:
    """Up to LANES images, one in each lane of a vector, ready to meet any number of others."""

    def __init__(self, recursion: Recursion, columns: Prepared) -> None:
        dtype = columns.scales.dtype
        self.count, self.lanes, self.dtype = len(columns), LANES[dtype], dtype
        self._recursion = recursion
        self._packed = [_in_lanes(part, self.lanes) for part in (columns.images, columns.scales.flatten(2))]
        places = recursion.height * recursion.width + 4 * recursion.width
        self._scratch = aligned((2 * places, self.lanes), dtype)

    def against(self, rows: Prepared) -> NDArray[np.float64]:
        """K(x, z) for the given x and this block's z: (rows, count) float64. One thread."""
        library = _library()
        assert library is not None
        job_type = _job_types()[self.dtype]
        slope, bend = _polynomials(self.dtype)
        r = self._recursion
        kept = [part.contiguous() for part in (rows.images, rows.scales)]
        job = job_type(
            r.height, r.width, r.channels, r.num_relus, *r.reach, r.tangent, r.first_fixed, r.last_fixed,
            *(part.data_ptr() for part in kept),
            *(part.data_ptr() for part in self._packed),
            r.row_weights.data_ptr(), r.column_weights.data_ptr(),
            slope.data_ptr(), bend.data_ptr(), self._scratch.data_ptr(),
        )  # fmt: skip
        out = np.empty((len(rows), self.lanes), dtype=np.float64)
        call = getattr(library, f"convolutional_{_SUFFIX[self.dtype]}")
        call(_machine(), ctypes.byref(job), 0, len(rows), out.ctypes.data)
        return out[:, : self.count]


def transpose_in_c(tile: torch.Tensor, out: torch.Tensor) -> None:
    """``out`` (m, n) becomes the transpose of ``tile`` (n, m); both of unit stride along their rows."""
    library = _library()
    assert library is not None
    assert tile.shape == out.shape[::-1]
    assert tile.stride(1) == out.stride(1) == 1
    call = getattr(library, f"transpose_{_SUFFIX[tile.dtype]}")
    call(_machine(), tile.data_ptr(), tile.stride(0), *tile.shape, out.data_ptr(), out.stride(0))


def norms_in_c(squares: torch.Tensor, num_relus: int, dtype: torch.dtype) -> torch.Tensor:
    """Norms and reciprocal norms (N, R, P, 2) of summed squares (N, H, W), float64; 0 where the norm is 0.

    Layer h's norms are 3^(h mod 16) times too large: the loops take the ninths of all layers at the end.
    """
    library = _library()
    assert library is not None
    squares = squares.contiguous()
    count, height, width = squares.shape
    scales = torch.empty(count, num_relus, height * width, 2, dtype=dtype)
    scratch = torch.empty(2 * height * width, dtype=torch.float64)
    call = getattr(library, f"norms_{_SUFFIX[dtype]}")
    call(
        _machine(), squares.data_ptr(), count, height, width, num_relus,
        scales.data_ptr(), scratch.data_ptr(),
    )  # fmt: skip
    return scales


class ScalarFunctionTile:
    """scale_i scale_j f(c_ij) over tiles of cosines.

    f is two polynomials in t = 2√(1 − |c|) − 1, and for machines that look coefficients up it may have pieces
    (:mod:`theory_modules.ntk_scalar_function`).
    """

    def __init__(
        self,
        positive: torch.Tensor,
        negative: torch.Tensor,
        pieces: torch.Tensor | None,
        threshold: float,
        most_entries: int,
    ) -> None:
        self._positive, self._negative, self._threshold = positive, negative, threshold
        self._pieces = pieces if _machine() == 4 else None
        self._flagged = np.empty(most_entries, dtype=np.int64)

    def apply(
        self, tile: torch.Tensor, row_scale: torch.Tensor, column_scale: torch.Tensor
    ) -> NDArray[np.int64]:
        """In place on ``tile`` (n, m), of unit stride along its rows; one thread.

        Returns i·m + j of the entries with |c| above the threshold, whose c is too coarse for f.
        """
        return self._call("fully_connected", tile, row_scale, column_scale)

    def product(
        self,
        rows: torch.Tensor,
        columns: torch.Tensor,
        tile: torch.Tensor,
        row_scale: torch.Tensor,
        column_scale: torch.Tensor,
    ) -> NDArray[np.int64]:
        """The same with c = ``rows`` (n, d) times ``columns`` (panels, d, lanes), as of :func:`in_panels`."""
        assert rows.is_contiguous()
        assert columns.is_contiguous()
        inputs = (rows.data_ptr(), columns.data_ptr(), rows.shape[1])
        return self._call("fully_connected_product", tile, row_scale, column_scale, *inputs)

    def _call(
        self, name: str, tile: torch.Tensor, row_scale: torch.Tensor, column_scale: torch.Tensor, *inputs: int
    ) -> NDArray[np.int64]:
        library = _library()
        assert library is not None
        assert tile.stride(1) == 1
        assert tile.numel() <= len(self._flagged)
        job = _fully_connected_types()[tile.dtype](
            row_scale.data_ptr(), column_scale.data_ptr(),
            self._positive.data_ptr(), self._negative.data_ptr(),
            None if self._pieces is None else self._pieces.data_ptr(),
            *tile.shape, self._threshold, len(self._positive) - 1,
        )  # fmt: skip
        call = getattr(library, f"{name}_{_SUFFIX[tile.dtype]}")
        out = (tile.data_ptr(), tile.stride(0), self._flagged.ctypes.data)
        return self._flagged[: call(_machine(), ctypes.byref(job), *inputs, *out)]


def has_product() -> bool:
    """Whether the loops have a matrix product worth using; elsewhere torch's is better."""
    return _library() is not None and _machine() >= 3


def in_panels(columns: torch.Tensor) -> torch.Tensor:
    """Vectors (m, d) as panels (⌈m / lanes⌉, d, lanes), zeros beyond m; an even number of panels."""
    lanes = LANES[columns.dtype]
    count = -(-len(columns) // (2 * lanes)) * 2
    panels = aligned((count, columns.shape[1], lanes), columns.dtype)
    whole = len(columns) // lanes
    panels[:whole] = columns[: whole * lanes].reshape(whole, lanes, columns.shape[1]).transpose(1, 2)
    panels[whole:] = 0
    if whole * lanes < len(columns):
        panels[whole, :, : len(columns) - whole * lanes] = columns[whole * lanes :].T
    return panels


def _in_lanes(part: torch.Tensor, lanes: int) -> torch.Tensor:
    """(n, A, P) → (A, P, lanes), missing images as zeros (norm 0: they contribute nothing)."""
    packed = aligned((*part.shape[1:], lanes), part.dtype)
    if len(part) < lanes:
        packed.zero_()
    packed[..., : len(part)] = part.permute(1, 2, 0)
    return packed


@cache
def _polynomials(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    slope, bend = slope_and_bend_polynomials(*_DEGREES[dtype])
    return torch.tensor(slope, dtype=dtype), torch.tensor(bend, dtype=dtype)


@cache
def _machine() -> int:
    library = _library()
    assert library is not None
    best = int(library.kernel_machine())
    wanted = os.environ.get("INSTAHIDE_KERNELS", "")
    return {"c": 0, "avx2": min(3, best)}.get(wanted, best)


@cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get("INSTAHIDE_KERNELS") == "torch":
        return None
    library = built_library("_kernel_loops")
    return None if library is None else _with_types(library)


def _with_types(library: ctypes.CDLL) -> ctypes.CDLL:
    library.kernel_machine.restype = ctypes.c_int32
    for suffix in _SUFFIX.values():
        convolutional: Any = getattr(library, f"convolutional_{suffix}")
        convolutional.argtypes = [
            ctypes.c_int32,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        ]
        convolutional.restype = None
        tile = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        for name, inputs in (("", []), ("_product", [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64])):
            scalar: Any = getattr(library, f"fully_connected{name}_{suffix}")
            scalar.argtypes = [ctypes.c_int32, ctypes.c_void_p, *inputs, *tile]
            scalar.restype = ctypes.c_int64
        transpose: Any = getattr(library, f"transpose_{suffix}")
        transpose.argtypes = [
            ctypes.c_int32, ctypes.c_void_p, *3 * [ctypes.c_int64], ctypes.c_void_p, ctypes.c_int64,
        ]  # fmt: skip
        transpose.restype = None
        norms: Any = getattr(library, f"norms_{suffix}")
        norms.argtypes = [
            ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, *3 * [ctypes.c_int32], *2 * [ctypes.c_void_p],
        ]  # fmt: skip
        norms.restype = None
    return library


def _real(dtype: torch.dtype) -> Any:
    return ctypes.c_float if dtype == torch.float32 else ctypes.c_double


@cache
def _job_types() -> dict[torch.dtype, Any]:
    numbers = (
        "height",
        "width",
        "channels",
        "num_relus",
        "reach_y",
        "reach_x",
        "tangent",
        "first_fixed",
        "last_fixed",
    )
    pointers = (
        "x", "x_norms", "z", "z_norms",
        "row_weights", "column_weights", "slope", "bend", "scratch",
    )  # fmt: skip
    layout = [*((name, ctypes.c_int32) for name in numbers), *((name, ctypes.c_void_p) for name in pointers)]
    return {
        dtype: type(f"{suffix}_job", (ctypes.Structure,), {"_fields_": layout})
        for dtype, suffix in _SUFFIX.items()
    }


@cache
def _fully_connected_types() -> dict[torch.dtype, Any]:
    def layout(real: Any) -> list[tuple[str, Any]]:
        pointers = [(name, ctypes.c_void_p) for name in _FULLY_CONNECTED_POINTERS]
        counts = [(name, ctypes.c_int64) for name in ("rows", "columns")]
        return [*pointers, *counts, ("threshold", real), ("degree", ctypes.c_int32)]

    return {
        dtype: type(f"{suffix}_scalar_job", (ctypes.Structure,), {"_fields_": layout(_real(dtype))})
        for dtype, suffix in _SUFFIX.items()
    }
