"""What the methods on a given kernel refuse, and in which words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernel_input import KernelInputError

_TILE = 1024
FloatingArray = NDArray[np.floating[Any]]


class NotPositiveSemidefiniteError(KernelInputError):
    """A kernel with an eigenvalue clearly below zero: ``smallest_eigenvalue``."""

    def __init__(self, smallest_eigenvalue: float, largest_eigenvalue: float) -> None:
        super().__init__(
            f"the kernel is not positive semidefinite: its smallest eigenvalue is {smallest_eigenvalue:.3g}, "
            f"its largest {largest_eigenvalue:.3g}\n"
            "hint: no kernel of real features is like this; check that rows and columns have the same order, "
            "or raise diag_reg"
        )
        self.smallest_eigenvalue = smallest_eigenvalue


def checked_kernel(kernel: Any, *, columns: int | None = None) -> FloatingArray:
    """A finite matrix: square and symmetric, or with ``columns`` columns. Reads a large one in blocks.

    Raises:
        KernelInputError: another shape, values that are not finite, a square kernel that is not symmetric.
    """
    matrix = _floating(kernel)
    if matrix.ndim != 2 or not matrix.size:
        raise KernelInputError(f"a kernel has shape {matrix.shape}\nhint: give a matrix with entries")
    check_finite(matrix)
    if columns is None and matrix.shape[0] != matrix.shape[1]:
        raise KernelInputError(
            f"a kernel between training samples has shape {matrix.shape}\nhint: it must be square"
        )
    if columns is not None and matrix.shape[1] != columns:
        raise KernelInputError(
            f"a kernel has {matrix.shape[1]} columns, but there are {columns} training samples\n"
            "hint: rows are the samples to predict, columns the training samples in the order of fit"
        )
    for i, j in _tiles(matrix):
        if columns is None and j.start <= i.start:
            _check_symmetry(matrix[i, j], matrix[j, i])
    return matrix


def check_finite(kernel: FloatingArray) -> None:
    """Raise KernelInputError with the first row that holds a NaN or infinity."""
    for i, j in _tiles(kernel):
        finite = np.isfinite(kernel[i, j])
        if not finite.all():
            row = i.start + int(np.argmin(finite.all(axis=1)))
            raise KernelInputError(
                f"row {row} of a kernel holds a NaN or infinity (inf)\n"
                "hint: look for missing values in the data it was computed from"
            )


def _tiles(kernel: FloatingArray) -> Iterator[tuple[slice, slice]]:
    for i in range(0, kernel.shape[0], _TILE):
        for j in range(0, kernel.shape[1], _TILE):
            yield slice(i, i + _TILE), slice(j, j + _TILE)


def _floating(kernel: Any) -> FloatingArray:
    found: FloatingArray = kernel if isinstance(kernel, np.ndarray) else np.asarray(kernel)
    return found if np.issubdtype(found.dtype, np.floating) else found.astype(np.float64)


def rows_at_a_time(columns: int) -> int:
    """So many that a block of them takes little memory."""
    return max(1, min(_TILE, _TILE * 4096 // columns))


def _check_symmetry(tile: FloatingArray, across: FloatingArray) -> None:
    worst = float(np.abs(tile - across.T).max())
    if worst > 100 * float(np.finfo(tile.dtype).eps) * float(np.abs(tile).max()):
        raise KernelInputError(
            f"a kernel between training samples is not symmetric: entries differ by {worst:.3g}\n"
            "hint: use the same samples, in the same order, for rows and columns"
        )


def checked_labels(labels: Any, count: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The classes, ascending, and each sample's index among them.

    Raises:
        KernelInputError: not one label a sample, a label that is not finite, or a single class.
    """
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise KernelInputError(
            f"labels have shape {labels.shape} for a kernel of {count} training samples\n"
            "hint: give one label a row"
        )
    if np.issubdtype(labels.dtype, np.floating) and not np.isfinite(labels).all():
        raise KernelInputError("a label is not finite\nhint: leave that sample out")
    classes, class_of = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise KernelInputError(
            f"all {count} training samples are of one class, {classes[0]}\n"
            "hint: a classifier needs samples of at least two classes"
        )
    return classes, class_of.astype(np.int64)
