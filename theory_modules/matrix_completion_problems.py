"""The published test problems: a matrix of low rank with entries of mean square one, partly revealed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def low_rank_matrix(n: int, rank: int, rng: np.random.Generator) -> FloatArray:
    """(n, n) product of Gaussian factors, scaled to Frobenius norm n."""
    W = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, n))
    return np.asarray(W * (n / np.linalg.norm(W)))


def completion_problem(n: int, rank: int, count: int, *, seed: int) -> tuple[FloatArray, NDArray[np.bool_]]:
    """The matrix (n, n) and a mask of ``count`` distinct entries."""
    if not 0 < count <= n * n:
        raise ValueError(f"count is {count}; give 1 to {n * n}, for an {n} x {n} matrix")
    rng = np.random.default_rng(seed)
    truth = low_rank_matrix(n, rank, rng)
    mask = np.zeros((n, n), dtype=bool)
    mask.flat[rng.choice(n * n, count, replace=False)] = True
    return truth, mask


def sensing_problem(n: int, rank: int, count: int, *, seed: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The matrix (n, n), Gaussian measurements divided by n (count, n, n), and their values (count,)."""
    if count < 1:
        raise ValueError(f"count is {count}; give at least one measurement")
    rng = np.random.default_rng(seed)
    truth = low_rank_matrix(n, rank, rng)
    measurements = rng.standard_normal((count, n, n)) / n
    return truth, measurements, measurements.reshape(count, -1) @ truth.reshape(-1)
