"""Singular values as analytic functions of time: signed, and followed through crossings and zero.

An SVD sorts its values and makes them positive, so curves that cross seem to bounce off each other, and one
that passes through zero seems to turn back. Along an analytic path of matrices there are U(t), S(t), V(t)
analytic in t with *signed* S(t). Sampled finely, they are the SVDs permuted and re-signed so that each pair
(u_r, v_r) moves as little as possible from one sample to the next. Where values coincide, the pairs are only
defined as a plane; there the plane's basis nearest the last sample is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import polar
from scipy.optimize import linear_sum_assignment

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class AnalyticSVD:
    """T samples of W(t) (n, p) = U diag(values) Vᵀ with k = min(n, p): U (T, n, k), values (T, k), V (T, p,

    k).
    """

    U: FloatArray
    values: FloatArray
    V: FloatArray


def track_singular_values(path: FloatArray, *, coincide: float = 1e-9) -> AnalyticSVD:
    """Follow the singular values of ``path`` (T, n, p), in order of the first sample.

    ``coincide``: values closer than this part of the largest count as equal at a sample.
    """
    U, s, Vt = np.linalg.svd(path, full_matrices=False)
    V = Vt.swapaxes(1, 2)
    for now in range(1, len(path)):
        before = now - 1
        _align_equal(U[now], s[now], V[now], U[before], V[before], coincide)
        overlap = (U[before].T @ U[now]) * (V[before].T @ V[now])
        # Products of both overlaps: a pair goes where both its vectors went; their sign is the value's.
        _, order = linear_sum_assignment(-np.abs(overlap))
        U[now], V[now], s[now] = U[now][:, order], V[now][:, order], s[now][order]
        left = np.where((U[before] * U[now]).sum(0) < 0, -1.0, 1.0)
        right = np.where((V[before] * V[now]).sum(0) < 0, -1.0, 1.0)
        U[now] *= left
        V[now] *= right
        s[now] = s[now] * left * right
    return AnalyticSVD(U, s, V)


def _align_equal(
    U: FloatArray, s: FloatArray, V: FloatArray, U_before: FloatArray, V_before: FloatArray, coincide: float
) -> None:
    """Turn the bases of equal singular values, in place, towards the sample before."""
    start = 0
    for end in range(1, len(s) + 1):
        if end < len(s) and s[start] - s[end] <= coincide * s[0]:
            continue
        if end - start > 1:
            block = slice(start, end)
            overlap = (U[:, block].T @ U_before) * (V[:, block].T @ V_before)
            nearest = np.sort(np.argsort(-np.abs(overlap).max(0))[: end - start])
            left, right = U[:, block].T @ U_before[:, nearest], V[:, block].T @ V_before[:, nearest]
            toward = left + right * np.where((left * right).sum(0) < 0, -1.0, 1.0)
            turn, _ = polar(toward)
            U[:, block], V[:, block] = U[:, block] @ turn, V[:, block] @ turn
        start = end
