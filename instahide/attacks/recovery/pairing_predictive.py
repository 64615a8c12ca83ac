"""How much better the images found explain an encoding than images nobody has seen.

Axes: N encodings, n private images, M candidates of a slot, G hypotheses about coefficients, r directions.

With q(u_i) = N(m_i, V_i) the images found (:mod:`.pairing_model`), c² the prior variance of an image and σ²
that of everything else, an encoding y holds two of them or two others::

    p(y | found)   =  mean over i, j, λ, λ', s  of  N(y; s·(λ·m_i + λ'·m_j), σ² + λ²·V_i + λ'²·V_j)      (1)
    p(y | unknown) =  mean over λ, λ'           of  N(y; 0,                  σ² + (λ² + λ'²)·c²)          (2)

The logarithm of (1)/(2) is a Bayes factor. Images of which nothing is known (m = 0, V = c²) give exactly 0,
so an uncertain image costs nothing; a wrong one is worse than none. Directions are taken as independent,
with V_i of the form 1/(a_i/σ² + 1/c²), a_i the information about image i, found from its total variance.

Beyond ``MAX_PAIRS`` pairs of images for an encoding only the likeliest are summed over: (1) is then too low.
"""

from __future__ import annotations

import math

import torch

from .pairing_features import Features
from .pairing_model import Candidates, Vectors, state_posteriors

MAX_PAIRS = 64
MAX_INFORMATION = 1e6
BISECTIONS = 50
BLOCK_VALUES = 4_000_000


def log_bayes_factors(features: Features, groups: list[Candidates], vectors: Vectors) -> torch.Tensor:
    """(N,) nats, log of (1)/(2); zero for rows in none of ``groups``, or which no pair can be in."""
    factors = torch.zeros(len(features.values))
    variance = posterior_variance(features, vectors)
    for block in (block for group in groups for block in group.blocks()):
        first, second, possible = _likeliest_pairs(features, block, vectors)
        states = first.shape[1] * block.coefficients.shape[1] * len(features.slope)
        size = max(1, BLOCK_VALUES // states)
        for at in range(0, len(block.rows), size):
            part = slice(at, at + size)
            y, weights = features.values[block.rows[part]], block.coefficients[part]
            pair = _found(features, y, weights, vectors.mean, variance, first[part], second[part])
            gain = pair - possible[part].clamp(min=1).log() - _unknown(features, y, weights)
            factors[block.rows[part]] = torch.where(possible[part] > 0, gain, torch.zeros(()))
    return factors


def posterior_variance(features: Features, vectors: Vectors) -> torch.Tensor:
    """(n, r) V_i whose sum over directions of V_i/σ² is the one of ``vectors``."""
    noise, prior = features.noise_variance, features.slope.square()
    wanted = vectors.covariance.diagonal()
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, math.log1p(MAX_INFORMATION))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        variance = 1 / (torch.expm1(middle)[:, None] / noise + 1 / prior)
        more = (variance / noise).sum(1) > wanted
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return 1 / (torch.expm1(low)[:, None] / noise + 1 / prior)


def _likeliest_pairs(
    features: Features, block: Candidates, vectors: Vectors
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, P) images of both slots, −1 where there are fewer pairs, and (B,) how many pairs there are."""
    responsibility = state_posteriors(features, block, vectors, 1.0, True).responsibility.sum((3, 4))
    first, second = block.first[:, :, None], block.second[:, None, :]
    allowed = ((first >= 0) & (second >= 0) & (first != second)).flatten(1)
    ranked = responsibility.flatten(1).masked_fill(~allowed, -1.0)
    best = ranked.topk(min(MAX_PAIRS, ranked.shape[1]), dim=1)
    width = block.second.shape[1]
    rows = torch.arange(len(block.rows))[:, None]
    left, right = block.first[rows, best.indices // width], block.second[rows, best.indices % width]
    out = best.values < 0
    return left.masked_fill(out, -1), right.masked_fill(out, -1), allowed.sum(1).float()


def _found(
    features: Features,
    y: torch.Tensor,
    weights: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
) -> torch.Tensor:
    """(B,) log Σ over pairs, mean over coefficients and sign, of the density in (1)."""
    i, j = first.clamp(min=0), second.clamp(min=0)
    a, b = weights[:, None, :, 0, None], weights[:, None, :, 1, None]  # (B, 1, G, 1)
    centre = a * mean[i][:, :, None] + b * mean[j][:, :, None]  # (B, P, G, r)
    spread = features.noise_variance + a**2 * variance[i][:, :, None] + b**2 * variance[j][:, :, None]
    density = _log_density(y[:, None, None] - centre, spread)
    if not features.signs_known:
        density = torch.logaddexp(density, _log_density(y[:, None, None] + centre, spread)) - math.log(2)
    density = density.masked_fill((first < 0)[:, :, None], -torch.inf)
    return density.flatten(1).logsumexp(1) - math.log(weights.shape[1])


def _unknown(features: Features, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B,) log of (2)."""
    spread = features.noise_variance + weights.square().sum(2)[:, :, None] * features.slope.square()
    return _log_density(y[:, None], spread).logsumexp(1) - math.log(weights.shape[1])


def _log_density(gap: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Σ over the last axis of log N(gap; 0, variance), without the constant."""
    return -0.5 * (gap.square() / variance + variance.log()).sum(-1)
