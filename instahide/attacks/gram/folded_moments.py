"""Inner products of Gaussian vectors from their absolute values.

Axes: m encodings, d features.

For X, Y jointly normal with variance 1 and correlation ρ the folded variables have

    E|X||Y| = (2/π)·(√(1 − ρ²) + ρ·arcsin ρ),    Cov(|X|, |Y|) = E|X||Y| − 2/π              (1)

(Nabeya 1951; Kamat 1953). (1) grows with |ρ|, from 0 to 1 − 2/π, so a covariance of absolute values
gives |ρ| back: the sign mask hides every feature and leaves all inner products. This is step one of Chen,
Li, Song and Zhuo (ICLR 2021) and of Huang et al. (arXiv 2011.11877): with isotropic features
x ~ N(0, I) and an encoding |⟨w_i, x⟩| per feature, ρ_ij = ⟨w_i, w_j⟩/(|w_i||w_j|), and nonnegative
weights make every inner product nonnegative.

A covariance over d features has standard deviation (1 − 2/π)/√d at ρ = 0, while (1) is ρ²/π: whether two
encodings share an image (ρ = 1/2) is known with 0.22·√d/2 standard deviations to spare on either side.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def folded_product_moment(correlation: Array | float) -> Array:
    """E|X||Y| of equation (1); ``correlation`` in [−1, 1]."""
    rho = np.clip(np.asarray(correlation, dtype=np.float64), -1.0, 1.0)
    return np.asarray(2 / math.pi * (np.sqrt(1 - rho * rho) + rho * np.arcsin(rho)))


def correlation_from_folded_covariance(covariance: Array | float) -> Array:
    """|ρ| with Cov(|X|, |Y|) = ``covariance``, by Newton's method; clipped to [0, 1].

    d/dρ E|X||Y| = (2/π)·arcsin ρ, and E|X||Y| − 2/π is ρ²/π to leading order, the start.
    """
    excess = np.clip(np.asarray(covariance, dtype=np.float64), 0.0, 1 - 2 / math.pi)
    rho = np.sqrt(math.pi * excess).clip(1e-9, 1.0)
    for _ in range(40):
        slope = 2 / math.pi * np.arcsin(rho)
        rho = np.clip(rho - (folded_product_moment(rho) - 2 / math.pi - excess) / slope, 1e-9, 1.0)
    return np.asarray(np.where(excess > 0, rho, 0.0))


def folded_correlations(magnitudes: Array) -> Array:
    """(m, m) estimated |ρ_ij| of the vectors whose absolute values are the rows of ``magnitudes`` (m, d).

    Each row is scaled by its own second moment E|X|² = |w|², which folding keeps.
    """
    rows = magnitudes / np.sqrt(np.mean(magnitudes**2, axis=1, keepdims=True)).clip(1e-12)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return correlation_from_folded_covariance(rows @ rows.T / rows.shape[1])
