"""First guesses without labels: encodings that look alike, and one cluster around each of many of them.

Axes: N encodings, n private images, K seeds, r directions.

Two encodings with a private image in common correlate in the metric c²/σ⁴ of :mod:`.pairing_features`;
where both hold much of it, the nearest neighbours are nearly always right (0.99 of them for the better
half of the encodings of a 2020-challenge replica). A seed is an encoding with close neighbours; its
neighbours, turned to its sign, give a first vector, and one step of EM against a background of everything
else,

    P(u in y) = sigmoid( log E_λ[p(y | λ, u) / p(y)] + b ),                                      (1)

with b such that the image is used 2N/n times, gathers the rest. Seeds fall on the same image many times:
they are taken by falling evidence, none that correlates by more than 0.5 with one taken before. (More
steps of (1) drift: a vector that is the mean of two images explains more encodings than either.)
"""

from __future__ import annotations

import math

import torch

from .pairing_features import Features
from .pairing_unlabelled import single_slot

NEIGHBOURS = 0.3  # of the encodings an image is in
SEEDS_PER_IMAGE = 6
SEED_SHARE = 0.7  # seeds come from this share of encodings, those with the closest neighbours
TYPICAL_COEFFICIENT = 0.33  # of the image in common, given that two encodings are near neighbours
SAME = 0.5
PRICE_RANGE = (-400.0, 50.0)
PRICE_BISECTIONS = 25
BLOCK = 2048


def seed_vectors(
    features: Features, coefficients: torch.Tensor, num_images: int, generator: torch.Generator
) -> torch.Tensor:
    """(m, r) vectors, best first, no two alike; m may be less or more than ``num_images``.

    Args:
        coefficients: (Q,) values of one private coefficient, of equal probability.
    """
    y, precision = features.values, 1 / features.noise_variance
    count = min(max(4, round(NEIGHBOURS * 2 * len(y) / num_images / 2)), len(y) - 1)
    closeness, neighbours, signs = _neighbours(features, count)
    ranked = closeness.sum(1).argsort(descending=True)[: max(1, int(SEED_SHARE * len(y)))]
    drawn = torch.randperm(len(ranked), generator=generator)[: SEEDS_PER_IMAGE * num_images]
    seeds = ranked[drawn]
    along = y[seeds] + torch.einsum("km,kmr->kr", signs[seeds], y[neighbours[seeds]])
    information = TYPICAL_COEFFICIENT**2 * (count + 1)
    variance = 1 / (information * precision + 1 / features.slope.square())
    vectors = variance * precision * TYPICAL_COEFFICIENT * along
    own = (variance * precision).sum().expand(len(seeds))
    scores, weights, squares = single_slot(features, coefficients, vectors, own, 1.0)
    prices = _balancing_prices(scores, 2 * len(y) / num_images)
    inside = torch.sigmoid(scores + prices)
    variance = 1 / ((inside * squares).sum(0)[:, None] * precision + 1 / features.slope.square())
    vectors = variance * precision * ((inside * weights).T @ y)
    gain = (inside * (scores - scores.median(0).values)).sum(0)
    return vectors[_distinct(vectors, gain)]


def alike(vectors: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """(m, m') absolute correlations."""
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return (unit @ torch.nn.functional.normalize(others, dim=1).T).abs()


def _neighbours(features: Features, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(N, count) correlations, rows and relative signs of the nearest neighbours of every encoding."""
    unit = features.values * features.slope / features.noise_variance
    unit = torch.nn.functional.normalize(unit, dim=1)
    parts = []
    for start in range(0, len(unit), BLOCK):
        table = unit[start : start + BLOCK] @ unit.T
        own = torch.arange(len(table))
        table[own, start + own] = 0.0
        nearest = (table if features.signs_known else table.abs()).topk(count, dim=1).indices
        found = table.gather(1, nearest)
        parts.append((found.abs(), nearest, torch.where(found < 0, -1.0, 1.0)))
    closeness, neighbours, signs = (torch.cat(column) for column in zip(*parts, strict=True))
    return closeness, neighbours, signs


def _balancing_prices(scores: torch.Tensor, uses: float) -> torch.Tensor:
    """(K,) b of equation (1): as many uses as an image has, but never more than its prior odds."""
    low, high = (torch.full((scores.shape[1],), limit) for limit in PRICE_RANGE)
    for _ in range(PRICE_BISECTIONS):
        middle = (low + high) / 2
        above = torch.sigmoid(scores + middle).sum(0) > uses
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.minimum(low, torch.tensor(math.log(max(uses / len(scores), 1e-9))))


def _distinct(vectors: torch.Tensor, gain: torch.Tensor) -> list[int]:
    table = alike(vectors, vectors)
    kept: list[int] = []
    for row in gain.argsort(descending=True).tolist():
        if not kept or float(table[row, kept].max()) < SAME:
            kept.append(row)
    return kept
