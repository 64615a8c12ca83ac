r"""The exact neural tangent kernel of a fully connected ReLU network, and its Gaussian-process kernel.

A network of L weight layers, infinitely wide and trained by gradient flow, is kernel regression with a kernel
known in closed form (Jacot, Gabriel and Hongler 2018; the recursion and the parameter L', the number of
layers kept fixed, as in Arora et al., ICLR 2020):

    S_1 = ⟨x, z⟩ + b²,  T_1 = S_1 if L' = 0 else 0
    S_{h+1} = √(S_h(x,x) S_h(z,z)) k1(c) / 2 + b²          T_{h+1} = T_h k0(c) / 2 + [h + 1 > L'] S_{h+1}
    K_{L,L'} = T_L

Without bias K = ‖x‖ ‖z‖ f(cos(x, z)) with one function f of one number, so that the kernel of any depth is a
matrix product, a square root and a short polynomial (:mod:`theory_modules.ntk_scalar_function`). Entries
whose cosine is too near to ±1 for the type, equal inputs among them, are computed again from differences in
float64: their diagonal is exact to rounding in float32, too. A zero input gives zeros (or what the bias
gives).

    python -m theory_modules.ntk          digits: accuracy of the kernel against the number of training images
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .kernel_input import (
    KernelInputError,
    checked_dtype,
    checked_pair,
    checked_whole,
    like,
    without_gradients,
)
from .kernel_loops import ScalarFunctionTile, has_loops, has_product, in_panels, transpose_in_c
from .kernel_memory import allocate
from .ntk_recursion import Start, layers, tangent_kernel
from .ntk_scalar_function import THRESHOLD, ScalarFunction, scalar_function

_TILE_ROWS, _TILE_COLUMNS = 96, 512  # of float32, 0.2 MB: stays in the second-level cache to be mirrored
_TILES_OF_ROWS = 10  # together, where nothing is mirrored
_MOST_FUSED = 256  # coordinates: beyond, the product is the work, and torch's is the best one
_PAIRS_AT_A_TIME = 1 << 16


@without_gradients
def fully_connected_ntk(
    x1: Any,
    x2: Any = None,
    *,
    depth: int,
    num_fixed_layers: int = 0,
    bias: float = 0.0,
    dtype: str | torch.dtype | None = None,
    num_threads: int | None = None,
) -> Any:
    """The NTK K_{L,L'} between the rows of ``x1`` (N1, d) and of ``x2`` (N2, d), by default ``x1`` itself.

    Args:
        depth: weight layers L ≥ 1, so L − 1 ReLUs.
        num_fixed_layers: L' in 0 .. L − 1, the first layers, which are not trained; L − 1 gives the NNGP.
        bias: standard deviation b ≥ 0 of the biases, trained with their layers.
        dtype: ``"float32"`` or ``"float64"`` of the result; by default that of ``x1``, float64 for integers.
        num_threads: by default torch's own number of threads.

    Returns:
        (N1, N2), a tensor for a tensor and a NumPy array otherwise. Without ``x2`` half of it is computed.

    Raises:
        KernelInputError: shapes that do not fit, NaN or infinity, an impossible depth.
    """
    first, second = checked_pair(x1, x2, "N d")
    depth = checked_whole("depth", depth, 1)
    fixed = checked_whole("num_fixed_layers", num_fixed_layers, 0, depth - 1)
    if not 0 <= bias < float("inf"):
        raise KernelInputError(f"bias is {bias!r}; give a standard deviation of at least 0")
    wanted = checked_dtype(dtype) if dtype is not None else _type_of(first)
    threads = num_threads or torch.get_num_threads()
    rows = _Rows.of(first, bias)
    columns = rows if second is None else _Rows.of(second, bias)
    law = _Law(depth, fixed, float(bias), scalar_function(depth, fixed, wanted) if bias == 0 else None)
    device = first.device
    out = allocate((len(first), len(columns.unit)), wanted) if device.type == "cpu" else None
    if out is None:
        out = torch.empty(len(first), len(columns.unit), dtype=wanted, device=device)
    _fill(out, rows, columns, law, threads, symmetric=second is None)
    return like(out, x1)


def fully_connected_nngp(x1: Any, x2: Any = None, *, depth: int, bias: float = 0.0, **options: Any) -> Any:
    """The Gaussian-process kernel S_L of the same network: only the last layer is trained."""
    depth = checked_whole("depth", depth, 1)
    return fully_connected_ntk(x1, x2, depth=depth, num_fixed_layers=depth - 1, bias=bias, **options)


@without_gradients
def fully_connected_ntk_table(
    x1: Any, x2: Any = None, *, max_depth: int, bias: float = 0.0
) -> dict[tuple[int, int], NDArray[np.float64]]:
    """All K_{L,L'} with L = 1 .. max_depth and L' = 0 .. L − 1, float64, from one pass of the recursion."""
    first, second = checked_pair(x1, x2, "N d")
    max_depth = checked_whole("max_depth", max_depth, 1)
    rows = _Rows.of(first, bias)
    columns = rows if second is None else _Rows.of(second, bias)
    shape = (len(rows.unit), len(columns.unit))
    table = {(depth, fixed): np.empty(shape) for depth in range(1, max_depth + 1) for fixed in range(depth)}
    for i0, i1, j0, j1 in _tiles(*shape):
        start = _start_of_tile(rows, columns, i0, i1, j0, j1)
        sums: list[torch.Tensor] = []
        for depth, (s, factor) in enumerate(layers(start, max_depth, bias), start=1):
            sums = [s.clone()] if factor is None else [part * factor + s for part in sums] + [s]
            for fixed, total in enumerate(sums):
                table[depth, fixed][i0:i1, j0:j1] = total.cpu().numpy()
    return table


@dataclass(frozen=True)
class _Rows:
    """Inputs as unit vectors (N, d) and norms (N,), in float64; a zero input has a zero vector.

    The bias is one more coordinate: ⟨x, z⟩ + b² = ⟨(x, b), (z, b)⟩.
    """

    unit: torch.Tensor
    norm: torch.Tensor

    @classmethod
    def of(cls, inputs: torch.Tensor, bias: float) -> _Rows:
        rows = inputs.to(torch.float64, copy=True)
        if bias:
            rows = torch.cat([rows, torch.full_like(rows[:, :1], bias)], dim=1)
        lowest, highest = torch.aminmax(rows, dim=1, keepdim=True)
        largest = torch.maximum(-lowest, highest)
        rows /= torch.where(largest > 0, largest, torch.ones_like(largest))
        norm = rows.norm(dim=1, keepdim=True)
        rows /= torch.where(norm > 0, norm, torch.ones_like(norm))
        return cls(rows, (norm * largest)[:, 0])


@dataclass(frozen=True)
class _Law:
    depth: int
    fixed: int
    bias: float
    function: ScalarFunction | None


def _type_of(tensor: torch.Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype in (torch.float32, torch.float64) else torch.float64


def _tiles(rows: int, columns: int, symmetric: bool = False) -> Iterator[tuple[int, int, int, int]]:
    """Tiles i0, i1, j0, j1; of a symmetric matrix those that meet the diagonal or lie above it."""
    height = _TILE_ROWS if symmetric else _TILE_ROWS * _TILES_OF_ROWS
    for i in range(0, rows, height):
        for j in range(0, columns, _TILE_COLUMNS):
            last = min(j + _TILE_COLUMNS, columns)
            if not symmetric or last > i:
                yield i, min(i + height, rows), max(i, j) if symmetric else j, last


def _fill(
    out: torch.Tensor, rows: _Rows, columns: _Rows, law: _Law, threads: int, *, symmetric: bool
) -> None:
    fill = _Filler(out, rows, columns, law, symmetric)
    tiles = list(_tiles(out.shape[0], out.shape[1], symmetric))
    if threads == 1 or len(tiles) == 1 or out.device.type != "cpu":
        fill.all(tiles)
        return
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for done in [pool.submit(fill.all, tiles[part::threads]) for part in range(threads)]:
                done.result()
    finally:
        torch.set_num_threads(before)


class _Filler:
    def __init__(self, out: torch.Tensor, rows: _Rows, columns: _Rows, law: _Law, symmetric: bool) -> None:
        self._out, self._rows, self._columns, self._law = out, rows, columns, law
        self._symmetric = symmetric
        self._row_units = rows.unit.to(out.dtype)
        self._row_norms = rows.norm.to(out.dtype)
        self._column_norms = columns.norm.to(out.dtype)
        self._in_c = has_loops() and out.device.type == "cpu"
        units = self._row_units if rows is columns else columns.unit.to(out.dtype)
        fused = self._in_c and has_product() and law.function is not None and units.shape[1] <= _MOST_FUSED
        self._panels = in_panels(units) if fused else None
        self._column_units = None if fused else units.T.contiguous()
        self._upper = torch.ones(_TILE_ROWS, _TILE_ROWS, dtype=torch.bool, device=out.device).triu()
        one = torch.ones(1, dtype=torch.float64)
        equal = Start(torch.zeros_like(one), torch.zeros_like(one, dtype=torch.bool), one, one)
        self._at_equality = float(tangent_kernel(equal, law.depth, law.fixed, bias=0.0))  # f(1)

    def all(self, tiles: list[tuple[int, int, int, int]]) -> None:
        function = self._law.function
        if function is None:
            for corners in tiles:
                self._recursively(*corners)
            return
        loops = None
        if self._in_c:
            most = max((i1 - i0) * (j1 - j0) for i0, i1, j0, j1 in tiles)
            threshold = THRESHOLD[self._out.dtype]
            loops = ScalarFunctionTile(function.positive, function.negative, function.pieces, threshold, most)
        coarse: list[torch.Tensor] = []  # entries i N2 + j that need their differences
        for i0, i1, j0, j1 in tiles:
            places = self._evaluate(function, loops, i0, i1, j0, j1)
            if len(places):
                i, j = places // (j1 - j0) + i0, places % (j1 - j0) + j0
                apart = i != j if self._symmetric else slice(None)  # the diagonal is known: _equal_pairs
                coarse.append((i * self._out.shape[1] + j)[apart])
            if sum(len(part) for part in coarse) > _PAIRS_AT_A_TIME:
                self._repair(torch.cat(coarse))
                coarse = []
            if self._symmetric:
                self._mirror(self._out[i0:i1, j0:j1], i0, i1, j0, j1)
                self._equal_pairs(max(i0, j0), min(i1, j1))
        if coarse:
            self._repair(torch.cat(coarse))

    def _recursively(self, i0: int, i1: int, j0: int, j1: int) -> None:
        tile = self._out[i0:i1, j0:j1]
        start = _start_of_tile(self._rows, self._columns, i0, i1, j0, j1)
        tile.copy_(tangent_kernel(start, self._law.depth, self._law.fixed, self._law.bias))
        if self._symmetric:
            self._mirror(tile, i0, i1, j0, j1)

    def _evaluate(
        self, function: ScalarFunction, loops: ScalarFunctionTile | None, i0: int, i1: int, j0: int, j1: int
    ) -> torch.Tensor:
        """f of the products into the tile; returns the flat places of it whose cosine is too coarse."""
        tile, rows = self._out[i0:i1, j0:j1], self._row_units[i0:i1]
        row_norms, column_norms = self._row_norms[i0:i1], self._column_norms[j0:j1]
        if loops is not None and self._panels is not None:
            panels = self._panels[j0 // self._panels.shape[2] :]
            return torch.from_numpy(loops.product(rows, panels, tile, row_norms, column_norms).copy())
        assert self._column_units is not None
        torch.mm(rows, self._column_units[:, j0:j1], out=tile)
        if loops is not None:
            return torch.from_numpy(loops.apply(tile, row_norms, column_norms).copy())
        coarse = (tile.abs() > THRESHOLD[tile.dtype]).flatten().nonzero()[:, 0]
        tile.copy_(function(tile) * row_norms[:, None] * column_norms)
        return coarse

    def _repair(self, entries: torch.Tensor) -> None:
        for some in torch.split(entries, _PAIRS_AT_A_TIME):
            i, j = some // self._out.shape[1], some % self._out.shape[1]
            start = _start_of_pairs(self._rows, self._columns, i, j)
            exact = tangent_kernel(start, self._law.depth, self._law.fixed, bias=0.0).to(self._out.dtype)
            self._out[i, j] = exact
            if self._symmetric:
                self._out[j, i] = exact

    def _equal_pairs(self, first: int, last: int) -> None:
        """The diagonal from ``first`` to ``last``: K(x, x) = ‖x‖² f(1)."""
        if first < last:
            squares = self._rows.norm[first:last].square()
            self._out[first:last, first:last].diagonal().copy_(squares * self._at_equality)

    def _mirror(self, tile: torch.Tensor, i0: int, i1: int, j0: int, j1: int) -> None:
        """The tile's transpose below the diagonal; above it for the part that lies on it."""
        inside = min(i1, j1)
        if j0 < inside:
            square = tile[j0 - i0 : inside - i0, : inside - j0]
            kept = self._upper[: len(square), : len(square)]
            square.copy_(torch.where(kept, square, square.T))
        if j1 > i1:
            first = max(i1, j0)
            above, below = tile[:, first - j0 :], self._out[first:j1, i0:i1]
            if self._in_c:
                transpose_in_c(above, below)
            else:
                below.copy_(above.T)


def _start_of_pairs(rows: _Rows, columns: _Rows, i: torch.Tensor, j: torch.Tensor) -> Start:
    """Some pairs, with u from the difference (or the sum) of the unit vectors."""
    x, z = rows.unit[i], columns.unit[j]
    negative = (x * z).sum(1) < 0
    gap = (x - torch.where(negative, -1.0, 1.0)[:, None].to(z.dtype) * z).square().sum(1) / 2
    zero = (rows.norm[i] == 0) | (columns.norm[j] == 0)
    return Start(torch.where(zero, 1.0, gap).clamp(0, 1), negative, rows.norm[i] ** 2, columns.norm[j] ** 2)


def _start_of_tile(rows: _Rows, columns: _Rows, i0: int, i1: int, j0: int, j1: int) -> Start:
    """A tile in float64, with the coarse cosines repaired."""
    cosine = rows.unit[i0:i1] @ columns.unit[j0:j1].T
    gap, negative = (1 - cosine.abs()).clamp(min=0), cosine < 0
    places = (cosine.abs() > THRESHOLD[torch.float64]).flatten().nonzero()[:, 0]
    for some in torch.split(places, _PAIRS_AT_A_TIME):
        i, j = some // (j1 - j0), some % (j1 - j0)
        exact = _start_of_pairs(rows, columns, i + i0, j + j0)
        gap[i, j], negative[i, j] = exact.gap, exact.negative
    return Start(gap, negative, rows.norm[i0:i1, None] ** 2, columns.norm[None, j0:j1] ** 2)


def main() -> None:
    """Accuracy on scikit-learn's digits against the number of training images, five ReLUs."""
    from sklearn.datasets import load_digits

    from .ntk_digits import print_learning_curve

    digits = load_digits()
    kernel = fully_connected_ntk(digits.data / 16.0, depth=6)
    print_learning_curve("fully connected NTK, 5 ReLUs", kernel, digits.target)


if __name__ == "__main__":
    main()
