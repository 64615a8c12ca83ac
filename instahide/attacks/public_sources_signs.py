"""From |z| to z: the sign of every pixel of a mixture, by mean-field annealing under an image prior.

Axes: N encodings, d = C·H·W values.

A sign mask leaves a = |z| of the mixture z = Σ λ_j·x_j. With z ~ N(μ, Q⁻¹) the signs s = z/a follow
an Ising law whose couplings say that neighbouring pixels agree::

    P(s | a) ∝ exp(−½ (a∘s − μ)ᵀ Q (a∘s − μ)),    Q = (v·Σ + τ²·I)⁻¹                      (1)

Σ is the covariance of one image, v = Σ λ_j² of the images not yet known. The mean-field equations for
the expected signs are, with q the diagonal of Q::

    s_i = tanh( a_i·[ q_i·a_i·s_i − (Q·(a∘s − μ))_i ] )                                   (2)

iterated with damping while the temperature τ falls: at large τ only broad light and dark areas are
decided, and each later step adds finer ones, so that two halves of a picture are rarely glued
together with opposite signs. (1) is symmetric under s → −s but for the small μ, so all signs come
out right or all come out wrong; the caller decides which from a source it recognises. With a source
known (μ large) the annealing starts at small τ from the signs of μ.

Mean-field annealing of Ising models: Peterson and Anderson, Complex Systems 1987. The mask is a
plain one-time flip, so everything here holds for T = 1: one release of each image.
"""

from __future__ import annotations

import numpy as np
import torch

from .public_sources_prior import ImagePrior

COLD_START = tuple(float(t) for t in np.geomspace(2.0, 0.01, 25))
WARM_START = tuple(float(t) for t in np.geomspace(0.3, 0.01, 8))
SWEEPS = 6
DAMPING = 0.5
BLOCK_VALUES = 1 << 18  # encodings are worked on in blocks that stay in the caches


def expected_mixtures(
    prior: ImagePrior,
    magnitudes: torch.Tensor,
    mean: torch.Tensor,
    spread: torch.Tensor,
    *,
    start: torch.Tensor,
    temperatures: tuple[float, ...] = COLD_START,
    sweeps: int = SWEEPS,
) -> torch.Tensor:
    """(N, C, H, W) posterior means a∘s of z by equation (2).

    Args:
        magnitudes: (N, C, H, W) a = |e|.
        mean: (N, C, H, W) or (1, C, H, W) μ.
        spread: (N,) v.
        start: (N, C, H, W) signs to start from, in [-1, 1].
        temperatures: τ, falling, in units of z.
    """
    result = torch.empty_like(magnitudes)
    size = max(1, BLOCK_VALUES // magnitudes[0].numel())
    means = mean.expand_as(magnitudes)
    for first in range(0, len(magnitudes), size):
        block = slice(first, first + size)
        result[block] = _anneal(
            prior, magnitudes[block], means[block], spread[block], start[block], temperatures, sweeps
        )
    return result


def _anneal(
    prior: ImagePrior,
    a: torch.Tensor,
    mean: torch.Tensor,
    spread: torch.Tensor,
    start: torch.Tensor,
    temperatures: tuple[float, ...],
    sweeps: int,
) -> torch.Tensor:
    signs = start.clone()
    variance = prior.variance * spread.view(-1, 1, 1, 1)
    for temperature in temperatures:
        precision = (variance + temperature**2).reciprocal()
        own = prior.pixel_diagonal(precision).mul_(a)
        for _ in range(sweeps):
            pull = prior.inverse(prior.transform(a * signs - mean).mul_(precision))
            signs.lerp_(torch.tanh_((own * signs).sub_(pull).mul_(a)), DAMPING)
    return signs.mul_(a)
