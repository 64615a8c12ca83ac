"""One convolutional kernel to compute: its recursion, its pieces, its memory, and which images are equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import convolutional_ntk_reference as reference
from .kernel_file import KernelFile
from .kernel_input import KernelInputError
from .kernel_loops import LANES, ColumnBlock, Prepared, Recursion, has_loops
from .kernel_tiles import Plan, Progress, Workers, write

_MOST_ROWS_PER_PANEL = 1024
_PLACES_PER_PIECE = 1 << 29  # entry-layers: a few tenths of a second
_GPU_BLOCK = 256  # images on either side of a launch: 65,536 programs and more
_FITS_AS_IT_IS = 20  # powers of two
_TORCH_PLACES = 1 << 19  # entries of one tensor of the torch path

Block = Callable[[Prepared, Prepared, Recursion], torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """See :func:`theory_modules.convolutional_ntk.convolutional_ntk`."""

    num_relus: int
    pooling: str
    pooling_radius: int
    flip: bool
    tangent: bool
    ends_fixed: bool


class ConvolutionalKernel:
    """K(x, z) of given images under given settings, ready to be filled into a matrix."""

    def __init__(
        self,
        first: torch.Tensor,
        second: torch.Tensor | None,
        settings: Settings,
        dtype: torch.dtype,
        num_threads: int,
        max_memory: int,
    ) -> None:
        self.dtype, self._settings = dtype, settings
        self._exponent = _common_exponent([first] if second is None else [first, second])
        if self._exponent:
            first = torch.ldexp(first, torch.tensor(-self._exponent))
            second = None if second is None else torch.ldexp(second, torch.tensor(-self._exponent))
        self._first, self._second = first, first if second is None else second
        self.shape = (len(first), len(self._second))
        self.recursion = recursion_of(first.shape[1:], settings, dtype)
        self._in_c = has_loops() and first.device.type == "cpu"
        self._threads = num_threads if self._in_c else 1
        self._on_gpu, self._block = _outside_c(first.device, self.recursion, dtype)
        self.plan = self._planned(second is None, max_memory)
        self._equal = EqualImages(self._first, self._second, self.recursion, dtype, in_c=self._in_c)
        self._equal_flipped = (
            EqualImages(self._first.flip(3), self._second, self.recursion, dtype, in_c=self._in_c)
            if settings.flip
            else None
        )

    def inputs(self) -> Iterator[torch.Tensor]:
        yield self._first
        if self._second is not self._first:
            yield self._second

    def description(self) -> dict[str, Any]:
        """What besides the inputs decides the numbers and the order of the work."""
        return {
            **asdict(self._settings),
            "dtype": str(self.dtype),
            "plan": asdict(self.plan),
            "exponent": self._exponent,
        }

    def fill(
        self, out: NDArray[Any], *, file: KernelFile | None = None, progress: Progress | None = None
    ) -> None:
        """Compute every block that the file does not have yet."""
        told = _Told(progress, self.plan.total())
        with Workers(self._threads) as workers:
            for panel in self.plan.panels():
                waiting = []
                for block in self.plan.blocks(panel):
                    if file is not None and file.is_done((*panel, *block)):
                        told.more(sum(piece.pairs for piece in self.plan.pieces(panel, block)))
                    else:
                        waiting.append(block)
                if not waiting:
                    continue
                rows = self._rows(panel)

                def job(block: tuple[int, int], panel: tuple[int, int] = panel, rows: _Rows = rows) -> None:
                    against = self._against(block)
                    for piece in self.plan.pieces(panel, block):
                        if workers.stopping.is_set():
                            return
                        write(out, piece, against(rows, panel[0], piece.i0, piece.i1), self.plan.symmetric)
                        told.more(piece.pairs)
                    if file is not None:
                        file.finished((*panel, *block))

                workers.each(job, iter(waiting))

    def _rows(self, panel: tuple[int, int]) -> _Rows:
        images = self._first[slice(*panel)]
        plain = self._prepared(images)
        return _Rows(plain, self._prepared(images.flip(3)) if self._settings.flip else None)

    def _prepared(self, images: torch.Tensor) -> Prepared:
        return reference.prepare(images, self._settings.num_relus, self.dtype, in_c=self._in_c)

    def _against(self, block: tuple[int, int]) -> Callable[[_Rows, int, int, int], NDArray[np.float64]]:
        """What computes rows i0 .. i1 of a panel against the block."""
        columns = self._prepared(self._second[slice(*block)])
        packed = ColumnBlock(self.recursion, columns) if self._in_c else None
        factor = 4.0**self._exponent

        def one(rows: Prepared) -> NDArray[np.float64]:
            if packed is not None:
                return packed.against(rows)
            return self._block(rows, columns, self.recursion).cpu().numpy()

        def both(rows: _Rows, start: int, i0: int, i1: int) -> NDArray[np.float64]:
            span = (i0 - start, i1 - start)
            values = self._equal.corrected(one(rows.plain.rows(*span)), i0, block[0])
            if rows.flipped is None or self._equal_flipped is None:
                return values * factor
            mirrored = self._equal_flipped.corrected(one(rows.flipped.rows(*span)), i0, block[0])
            return (values + mirrored) * (factor / 2)

        return both

    def _planned(self, symmetric: bool, max_memory: int) -> Plan:
        r = self.recursion
        pixels = r.height * r.width
        sides = 2 if self._settings.flip else 1
        row_bytes = sides * (r.channels + 2 * r.num_relus) * pixels * self.dtype.itemsize
        lanes = _GPU_BLOCK if self._on_gpu else max(1, _TORCH_PLACES // (8 * pixels))
        lanes = LANES[self.dtype] if self._in_c else lanes
        block_bytes = (2 * r.channels + 4 * r.num_relus + 2) * pixels * self.dtype.itemsize * lanes
        least = row_bytes + self._threads * 2 * block_bytes
        if least > max_memory:
            raise KernelInputError(
                f"max_memory is {max_memory / 1e6:.0f} MB and {least / 1e6:.0f} MB are needed for a row and "
                f"{self._threads} thread{'s' * (self._threads > 1)}; give more, or fewer threads"
            )
        panel = min(_MOST_ROWS_PER_PANEL, (max_memory - self._threads * 2 * block_bytes) // row_bytes)
        work = sides * r.num_relus * lanes * places_per_pair(r)
        piece = max(1, _PLACES_PER_PIECE // work) if self._in_c else _GPU_BLOCK if self._on_gpu else 8
        return Plan(self.shape, symmetric, lanes, max(1, panel), piece)


def _common_exponent(images: list[torch.Tensor]) -> int:
    """e such that images times 2^−e have norms that fit the type; 0 where they do as they are."""
    largest = max(float(torch.stack(torch.aminmax(part)).abs().max()) for part in images)
    exponent = math.frexp(largest)[1]
    return exponent if abs(exponent) > _FITS_AS_IT_IS else 0


def _outside_c(device: torch.device, recursion: Recursion, dtype: torch.dtype) -> tuple[bool, Block]:
    """What computes a block where the loops in C do not: one fused kernel on a GPU, or torch's operations."""
    if device.type == "cuda" and find_spec("triton") is not None:
        from . import convolutional_ntk_triton as fused

        if fused.fits(recursion, dtype):
            return True, fused.kernel_block
    return False, reference.kernel_block


@dataclass(frozen=True)
class _Rows:
    plain: Prepared
    flipped: Prepared | None


class _Told:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def more(self, pairs: int) -> None:
        self._done += pairs
        if self._progress is not None:
            self._progress(self._done, self._total)


class EqualImages:
    """Pairs of equal images: there the part of displacement 0 comes from the closed form.

    In float32 a correlation of 1 is rounded by 6e-8, and k0 with it by 1e-4 at every layer.
    """

    def __init__(
        self,
        first: torch.Tensor,
        second: torch.Tensor,
        recursion: Recursion,
        dtype: torch.dtype,
        *,
        in_c: bool,
    ) -> None:
        numbers: dict[bytes, int] = {}
        self._second = _numbered(second, numbers)
        self._first = _numbered(first, numbers) if first is not second else self._second
        shared = np.intersect1d(self._first, self._second)
        self._exact = np.zeros(len(numbers))  # of displacement 0
        self._rounded = np.zeros(len(numbers))  # the same as the loops give it; not needed where it is all
        self._is_all = recursion.reach == (0, 0)
        where = {number: i for i, number in reversed(list(enumerate(self._first.tolist())))}
        local = replace(recursion, reach=(0, 0))
        for some in np.array_split(shared, max(1, len(shared) // 256)) if len(shared) else []:
            images = first[[where[int(number)] for number in some]]
            self._exact[some] = reference.equal_images_value(images, recursion).cpu().numpy()
            if not self._is_all:
                prepared = reference.prepare(images, recursion.num_relus, dtype, in_c=in_c)
                self._rounded[some] = _diagonal(prepared, local, in_c)

    def corrected(self, values: NDArray[np.float64], i0: int, j0: int) -> NDArray[np.float64]:
        rows = self._first[i0 : i0 + len(values), None]
        equal = rows == self._second[None, j0 : j0 + values.shape[1]]
        if not equal.any():
            return values
        exact = self._exact[rows]
        return np.where(equal, exact if self._is_all else values - self._rounded[rows] + exact, values)


def _diagonal(prepared: Prepared, recursion: Recursion, in_c: bool) -> NDArray[np.float64]:
    """K(x, x) as the loops compute it, one image at a time."""
    result = np.empty(len(prepared))
    for i in range(len(prepared)):
        one = prepared.rows(i, i + 1)
        if in_c:
            result[i] = ColumnBlock(recursion, one).against(one)[0, 0]
        else:
            result[i] = float(reference.kernel_block(one, one, recursion)[0, 0])
    return result


def _numbered(images: torch.Tensor, numbers: dict[bytes, int]) -> NDArray[np.int64]:
    raw = images.detach().cpu().contiguous().numpy()
    raw = raw + 0.0  # −0 is 0
    return np.array([numbers.setdefault(image.tobytes(), len(numbers)) for image in raw], dtype=np.int64)


def places_per_pair(recursion: Recursion) -> int:
    """Entries of S that a pair needs: Σ over displacements of the places where both lie inside."""
    rows = sum(recursion.height - abs(d) for d in range(-recursion.reach[0], recursion.reach[0] + 1))
    columns = sum(recursion.width - abs(d) for d in range(-recursion.reach[1], recursion.reach[1] + 1))
    return rows * columns


def recursion_of(shape: torch.Size | tuple[int, ...], settings: Settings, dtype: torch.dtype) -> Recursion:
    channels, height, width = shape
    return Recursion(
        height=height,
        width=width,
        channels=channels,
        num_relus=settings.num_relus,
        reach=(_reach(height, settings), _reach(width, settings)),
        tangent=settings.tangent,
        first_fixed=settings.ends_fixed,
        last_fixed=settings.ends_fixed,
        row_weights=axis_weights(height, settings).to(dtype),
        column_weights=axis_weights(width, settings).to(dtype),
    )


def _reach(size: int, settings: Settings) -> int:
    if settings.pooling == "global":
        return size - 1
    return min(2 * settings.pooling_radius, size - 1)


def axis_weights(size: int, settings: Settings) -> torch.Tensor:
    """(2 size − 1, size): for displacement d − (size − 1) and place r along one axis, its share of the last
    sum.

    With windows of 2r + 1: how many window centres inside the image see both r and r + d, over 2r + 1
    squared.
    """
    places = torch.arange(size)
    moved = places + torch.arange(-(size - 1), size)[:, None]
    inside = (moved >= 0) & (moved < size)
    if settings.pooling == "global":
        return inside.double() / size**2
    radius = settings.pooling_radius
    lowest = torch.maximum(places.expand_as(moved), moved) - radius
    highest = torch.minimum(places.expand_as(moved), moved) + radius
    centres = (highest.clamp(max=size - 1) - lowest.clamp(min=0) + 1).clamp(min=0)
    return torch.where(inside, centres, 0).double() / (2 * radius + 1) ** 2
