"""(K + ρ 1) w = y in float64: in memory, or through a file where the kernel is larger than memory.

The ridge is relative, ρ = diag_reg · tr K / N, so that one value serves kernels of any scale. A
factorisation by Cholesky that meets a pivot of zero or less says that K + ρ 1 is singular to rounding or
K is no kernel at all: then the smallest eigenvalue decides. Below what rounding of K's entries explains,
the kernel is refused; otherwise a jitter is added, 10⁻¹² tr K / N first and up to 10⁻⁴, the least that
works, and reported.

Out of memory, the lower triangle is factored panel by panel, each of b columns: read from the kernel,
reduced by all panels to its left (read from the scratch file in turn), factored, written. Three panels of
N × b are in memory, 4N² bytes plus half a panel on disk; everything is float64, whatever the kernel's type.

Axes: N training samples, K right-hand sides.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh, solve_triangular

from .kernel_checks import FloatingArray, NotPositiveSemidefiniteError
from .kernel_input import KernelInputError

FloatArray = NDArray[np.float64]

JITTERS = (0.0, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
MIN_PANEL = 16
_PANELS_IN_MEMORY = 4
_SHARE_OF_FREE = 0.9


@dataclass(frozen=True, repr=False)
class RidgeSolution:
    """``weights`` (N, K); the ``jitter`` added beside the ridge and the smallest squared pivot: absolute."""

    weights: FloatArray
    jitter: float
    smallest_pivot: float


def solve_ridge(kernel: FloatingArray, targets: FloatArray, *, diag_reg: float = 0.0) -> RidgeSolution:
    """In memory; two float64 copies of the kernel at most.

    Raises:
        KernelInputError: two copies do not fit into memory, said before starting.
        NotPositiveSemidefiniteError: with the smallest eigenvalue.
    """
    count = len(kernel)
    needed, free = 16 * count * count, psutil.virtual_memory().available
    if needed > _SHARE_OF_FREE * free:
        raise KernelInputError(
            f"solving for {count} samples in memory takes {needed / 1e9:.1f} GB "
            f"and {free / 1e9:.1f} GB are free\n"
            "hint: give max_memory and scratch_folder to work through a file"
        )
    scale = float(np.trace(kernel, dtype=np.float64)) / count
    for jitter in JITTERS:
        matrix = np.array(kernel, dtype=np.float64, order="F")
        matrix[np.diag_indices(count)] += (diag_reg + jitter) * scale
        try:
            factor = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            if jitter == 0.0:
                refuse_indefinite(kernel, diag_reg * scale)
            continue
        pivot = float(np.square(np.diag(factor[0])).min())
        return RidgeSolution(
            np.asarray(cho_solve(factor, targets, check_finite=False)), jitter * scale, pivot
        )
    raise KernelInputError(
        f"the kernel of {count} samples is singular, with a jitter of {JITTERS[-1]:g} too\n"
        "hint: raise diag_reg, or leave out samples that are there twice"
    )


def check_positive_semidefinite(kernel: FloatingArray) -> None:
    """A factorisation with the jitter that rounding needs; eigenvalues only where it fails.

    Raises:
        NotPositiveSemidefiniteError: with the smallest eigenvalue.
    """
    matrix = np.array(kernel, dtype=np.float64, order="F")
    matrix[np.diag_indices(len(matrix))] += (
        rounding_of_eigenvalues(kernel) * float(np.trace(matrix)) / len(matrix)
    )
    try:
        cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        refuse_indefinite(kernel)


def refuse_indefinite(kernel: FloatingArray, ridge: float = 0.0) -> None:
    """Raise where an eigenvalue of the kernel plus ridge is further below 0 than rounding explains."""
    matrix = np.asarray(kernel, dtype=np.float64)
    last = len(matrix) - 1
    smallest = float(eigh(matrix, eigvals_only=True, subset_by_index=(0, 0))[0])
    largest = float(eigh(matrix, eigvals_only=True, subset_by_index=(last, last))[0])
    if smallest + ridge < -rounding_of_eigenvalues(kernel) * max(largest, -smallest):
        raise NotPositiveSemidefiniteError(smallest, largest)


def rounding_of_eigenvalues(kernel: FloatingArray) -> float:
    """How far, relative to the largest, rounding moves an eigenvalue; features may have been float32."""
    return max(1e-7, 10 * math.sqrt(len(kernel)) * float(np.finfo(kernel.dtype).eps))


def solve_ridge_through_file(
    kernel: FloatingArray,
    targets: FloatArray,
    *,
    diag_reg: float = 0.0,
    max_memory: int,
    scratch_folder: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RidgeSolution:
    """For a memory-mapped kernel: ``max_memory`` bytes of panels, and a scratch file that is gone
    afterwards.

    There is no ladder here, for each rung would be a whole factorisation: a pivot of zero or less is an
    error.

    Args:
        scratch_folder: by default the system's folder for temporary files.
        progress: told (panels done, panels).

    Raises:
        KernelInputError: too little memory or disk, said before starting, or K + ρ 1 not positive definite.
    """
    count = len(kernel)
    width = min(count, max_memory // (8 * _PANELS_IN_MEMORY * count))
    if width < min(MIN_PANEL, count):
        least = 8 * _PANELS_IN_MEMORY * count * MIN_PANEL
        raise KernelInputError(
            f"max_memory is {max_memory} bytes; {count} samples need at least {least}\nhint: raise max_memory"
        )
    free_memory = psutil.virtual_memory().available
    if max_memory > _SHARE_OF_FREE * free_memory:
        raise KernelInputError(
            f"max_memory is {max_memory / 1e9:.2f} GB and {free_memory / 1e9:.2f} GB are free\n"
            "hint: lower max_memory"
        )
    panels = _Panels(count, width)
    folder = scratch_folder or Path(tempfile.gettempdir())
    free_disk = shutil.disk_usage(folder).free
    if panels.size * 8 > _SHARE_OF_FREE * free_disk:
        raise KernelInputError(
            f"the factor of {count} samples takes {panels.size * 8 / 1e9:.1f} GB and {folder} has "
            f"{free_disk / 1e9:.1f} GB\nhint: give a scratch_folder on a larger disk"
        )
    with tempfile.NamedTemporaryFile(dir=folder, prefix="kernel-factor-") as file:
        factor = np.memmap(file.name, dtype=np.float64, mode="w+", shape=(panels.size,))
        ridge = diag_reg * float(np.diagonal(kernel).sum(dtype=np.float64)) / count
        pivot = _factor_panels(kernel, ridge, factor, panels, progress)
        return RidgeSolution(_solve_panels(factor, panels, targets), 0.0, pivot)


@dataclass(frozen=True)
class _Panels:
    """Columns first .. last − 1, rows first .. N − 1 of the lower triangle, one after the other in a file."""

    count: int
    width: int

    @property
    def size(self) -> int:
        return sum((self.count - first) * (last - first) for first, last in self)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self.count, self.width):
            yield first, min(first + self.width, self.count)

    def views(self, factor: Any) -> Iterator[tuple[int, int, FloatArray]]:
        """(first, last, panel (N − first, last − first)) of each."""
        at = 0
        for first, last in self:
            size = (self.count - first) * (last - first)
            yield first, last, factor[at : at + size].reshape(self.count - first, last - first)
            at += size


def _factor_panels(
    kernel: FloatingArray,
    ridge: float,
    factor: Any,
    panels: _Panels,
    progress: Callable[[int, int], None],
) -> float:
    smallest = math.inf
    total = len(list(panels))
    for number, (first, last, out) in enumerate(panels.views(factor)):
        panel = np.array(kernel[first:, first:last], dtype=np.float64)
        panel[np.arange(last - first), np.arange(last - first)] += ridge
        for left, _, done in panels.views(factor):
            if left == first:
                break
            below = np.array(done[first - left :])
            panel -= below @ below[: last - first].T
        try:
            corner = np.linalg.cholesky(panel[: last - first])
        except np.linalg.LinAlgError:
            raise KernelInputError(
                f"the kernel plus its ridge is not positive definite: a pivot in rows {first} to {last - 1} "
                "is not above zero\n"
                "hint: raise diag_reg (1e-8 is a start), or leave out samples that are there twice"
            ) from None
        smallest = min(smallest, float(np.square(np.diag(corner)).min()))
        panel[: last - first] = corner
        if last < panels.count:
            panel[last - first :] = solve_triangular(corner, panel[last - first :].T, lower=True).T
        out[:] = panel
        progress(number + 1, total)
    return smallest


def _solve_panels(factor: Any, panels: _Panels, targets: FloatArray) -> FloatArray:
    """L Lᵀ w = y: forward through the panels, then back."""
    w = np.array(targets, dtype=np.float64)
    for first, last, panel in panels.views(factor):
        w[first:last] = solve_triangular(panel[: last - first], w[first:last], lower=True)
        w[last:] -= panel[last - first :] @ w[first:last]
    for first, last, panel in reversed(list(panels.views(factor))):
        rest = w[first:last] - panel[last - first :].T @ w[last:]
        w[first:last] = solve_triangular(panel[: last - first], rest, lower=True, trans="T")
    return w
