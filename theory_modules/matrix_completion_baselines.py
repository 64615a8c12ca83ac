"""What everyone tries first: the mean, the SVD after filling in the mean, and soft-impute.

Soft-impute (Mazumder, Hastie, Tibshirani 2010) minimises ½ Σ_observed (X − Y)² + λ|X|_* by shrinking the
singular values of the matrix filled in with its own last guess; λ → 0 along a decreasing grid leads to the
matrix of least nuclear norm, slowly. ``nuclear_norm`` goes there directly and proves it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .nuclear_norm import NuclearNormInputError
from .nuclear_norm_shrinkage import ShrunkMatrix

FloatArray = NDArray[np.float64]


def mean_fill(observed: ArrayLike, mask: ArrayLike) -> FloatArray:
    """Column means of the observed entries (n, p) in the gaps; the overall mean where a column has none."""
    values, known = _checked(observed, mask)
    counts = known.sum(0)
    overall = values[known].mean()
    means = np.where(counts > 0, np.where(known, values, 0).sum(0) / np.maximum(counts, 1), overall)
    return np.where(known, values, means)


def svd_mean_fill(observed: ArrayLike, mask: ArrayLike, *, rank: int) -> FloatArray:
    """The best approximation of ``rank`` to the mean-filled matrix, observed entries put back."""
    values, known = _checked(observed, mask)
    if rank < 1:
        raise NuclearNormInputError(f"rank is {rank}; give at least 1")
    U, s, Vt = np.linalg.svd(mean_fill(values, known), full_matrices=False)
    return np.where(known, values, (U[:, :rank] * s[:rank]) @ Vt[:rank])


def soft_impute(
    observed: ArrayLike,
    mask: ArrayLike,
    *,
    shrinkage: float | None = None,
    num_levels: int = 20,
    max_iter: int = 200,
    tolerance: float = 1e-5,
) -> FloatArray:
    """The minimiser X (n, p) for λ = ``shrinkage``, warm-started along ``num_levels`` larger λ.

    ``shrinkage`` defaults to 1/1000 of the largest singular value of the zero-filled matrix; ``max_iter`` and
    ``tolerance`` (relative change) apply to each λ. The observed entries come back shrunk, as the method
    says.
    """
    values, known = _checked(observed, mask)
    filled = np.where(known, values, 0.0)
    largest = float(np.linalg.norm(filled, 2))
    last = largest / 1000 if shrinkage is None else shrinkage
    if not last > 0:
        raise NuclearNormInputError(f"shrinkage is {last!r}; give a positive number")
    X = np.zeros_like(filled)
    for level in np.geomspace(max(largest / 2, last), last, num_levels):
        for _ in range(max_iter):
            before, X = X, ShrunkMatrix(np.where(known, values, X), float(level)).matrix
            if np.linalg.norm(X - before) <= tolerance * max(float(np.linalg.norm(before)), 1e-300):
                break
    return X


def _checked(observed: ArrayLike, mask: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    values, known = np.asarray(observed, dtype=np.float64), np.asarray(mask).astype(bool)
    if values.ndim != 2 or known.shape != values.shape:
        raise NuclearNormInputError(
            f"observed has shape {values.shape} and mask {known.shape}; give both as (n, p)"
        )
    if not known.any() or not np.isfinite(values[known]).all():
        raise NuclearNormInputError("observed entries are missing or not finite; mark what is known in mask")
    return values, known
