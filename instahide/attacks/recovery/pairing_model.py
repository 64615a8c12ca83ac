"""Who was mixed with whom, and what each looks like: one mixture model, fitted by annealed variational EM.

Axes: N encodings, n private images, M candidates of a slot, G hypotheses about coefficients, r directions.

In the coordinates of :mod:`.pairing_features` an encoding is a noisy sum of two unknown vectors,

    y = s·(λ·u_i + ρ·λ'·u_j) + noise,  noise ~ N(0, diag σ²),  u_i ~ N(0, diag c²),  s, ρ = ±1,    (1)

with i, j, s, ρ and the choice among G pairs (λ, λ') hidden. Given the vectors, every state's likelihood
needs only ⟨y, u_i⟩ and ⟨u_i, u_j⟩ in the metric 1/σ², so all states of all encodings are summed over
exactly (E step); given the states, all u solve one n×n system a direction (M step). q(u) is Gaussian: its
variance enters ⟨u_i, u_i⟩, which keeps vectors that nobody determines from explaining anything.
Likelihoods are raised to a power β that grows to 1 (deterministic annealing, Rose 1998; Ueda and Nakano
1998), since clusters found one by one would be found twice.

*Equal use.* Every image is in 2N/n encodings. A price b_i in each state that uses image i is moved until
the expected uses agree: the dual of the transport problem "N encodings of two slots, n images of 2N/n
places", with entropy (Sinkhorn 1967; Cuturi 2013). It is what a min-cost flow would enforce on a hard
assignment, and it rules out that one image takes two clusters while two images share another.

*Signs.* ρ is free while clusters form: u_i and −u_i explain the same encodings. Then signs are
synchronised by the leading eigenvector of E[ρ] over pairs of images, and ρ = 1 from there on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .pairing_features import Features

BLOCK_STATES = 2_000_000
PRICE_STEP = 0.7
START_SCALE = 0.3
MAX_PRICE = 30.0


@dataclass(frozen=True, eq=False)
class Candidates:
    """Rows whose slots may hold the images listed.

    Args:
        rows: (B,) rows of y.
        first, second: (B, M) images each slot may hold; −1 fills up short lists.
        coefficients: (B, G, 2), hypotheses of equal probability.
    """

    rows: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    coefficients: torch.Tensor

    def blocks(self) -> list[Candidates]:
        """Parts with at most ``BLOCK_STATES`` states."""
        states = self.first.shape[1] * self.second.shape[1] * self.coefficients.shape[1] * 2
        size = max(1, BLOCK_STATES // states)
        columns = [torch.split(x, size) for x in (self.rows, self.first, self.second, self.coefficients)]
        return [Candidates(*part) for part in zip(*columns, strict=True)]


@dataclass(frozen=True, eq=False)
class Vectors:
    """q(u): n vectors and their uncertainty in the metric 1/σ².

    Args:
        mean: (n, r).
        covariance: (n, n) Σ_d Cov(u_id, u_jd) / σ_d².
        prices: (n,) b.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    prices: torch.Tensor


@dataclass(frozen=True, eq=False)
class Assignment:
    """The likeliest state of every encoding.

    Args:
        images: (N, 2).
        coefficients: (N, 2) expected given the images.
        probability: (N, 2) of each slot's image.
        log_evidence: (N,) log p(y | vectors) / p(y | no private image), states equally likely beforehand.
    """

    images: torch.Tensor
    coefficients: torch.Tensor
    probability: torch.Tensor
    log_evidence: torch.Tensor


@dataclass(eq=False)
class _Sums:
    """What the M step needs."""

    weights: torch.Tensor  # (N, n) E[s·λ] of image i in row
    gram: torch.Tensor  # (n, n) E[s s' λ λ']
    uses: torch.Tensor  # (n,)
    relative: torch.Tensor  # (n, n) E[ρ]


def random_vectors(features: Features, count: int, generator: torch.Generator) -> Vectors:
    """A start that favours nobody."""
    drawn = torch.randn(count, len(features.slope), generator=generator)
    spread = (features.slope.square() / features.noise_variance).sum()
    return Vectors(START_SCALE * features.slope * drawn, torch.eye(count) * spread * 0.5, torch.zeros(count))


def fit(
    features: Features,
    groups: list[Candidates],
    start: Vectors,
    powers: NDArray[np.float64],
    *,
    signs_tied: bool,
    progress: Callable[..., None] | None = None,
) -> Vectors:
    """EM along ``powers`` (β); with free relative signs the vectors come out with arbitrary ones."""
    blocks = [block for group in groups for block in group.blocks()]
    vectors = start
    for step, power in enumerate(powers):
        sums = _expectation(features, blocks, vectors, float(power), signs_tied)
        vectors = _maximisation(features, sums, vectors.prices)
        if progress is not None:
            progress(step + 1, len(powers), "who was mixed with whom")
    return vectors


def synchronise(features: Features, groups: list[Candidates], vectors: Vectors) -> Vectors:
    """Vectors turned so that pairs agree in sign, by the leading eigenvector of E[ρ]."""
    if features.signs_known:
        return vectors
    blocks = [block for group in groups for block in group.blocks()]
    relative = _expectation(features, blocks, vectors, 1.0, False).relative
    leading = _eigen(relative + relative.T)[1][:, -1]
    turn = torch.where(leading < 0, -1.0, 1.0)
    return Vectors(vectors.mean * turn[:, None], vectors.covariance * turn * turn[:, None], vectors.prices)


def assign(features: Features, groups: list[Candidates], vectors: Vectors) -> Assignment:
    """The likeliest pair of images of every encoding, prices included (signs tied)."""
    N = len(features.values)
    images = torch.zeros((N, 2), dtype=torch.int64)
    coefficients, probability = torch.zeros(N, 2), torch.zeros(N, 2)
    evidence = torch.zeros(N)
    for block in (block for group in groups for block in group.blocks()):
        states = state_posteriors(features, block, vectors, 1.0, True)
        R = states.responsibility.sum(4)  # (B, M, M', G)
        pairs = R.sum(3)
        left, right = (R * block.coefficients[:, None, None, :, k] for k in (0, 1))
        left, right = left.sum(3), right.sum(3)
        if torch.equal(block.first, block.second):  # (i, j) and (j, i) are the same answer
            pairs, left, right = pairs + pairs.mT, left + right.mT, right + left.mT
        best = pairs.flatten(1).argmax(1)
        i, j = best // pairs.shape[2], best % pairs.shape[2]
        row = torch.arange(len(block.rows))
        images[block.rows] = torch.stack([block.first[row, i], block.second[row, j]], 1)
        expected = torch.stack([left[row, i, j], right[row, i, j]], 1)
        coefficients[block.rows] = expected / pairs[row, i, j, None].clamp(min=1e-30)
        probability[block.rows] = torch.stack([pairs.sum(2)[row, i], pairs.sum(1)[row, j]], 1)
        evidence[block.rows] = states.log_evidence
    return Assignment(images, coefficients, probability, evidence)


@dataclass(eq=False)
class StatePosteriors:
    """(B, M, M', G, 2) responsibilities of (i, j, g, ρ), and E[s] given each state."""

    responsibility: torch.Tensor
    sign: torch.Tensor
    log_evidence: torch.Tensor


def state_posteriors(
    features: Features, block: Candidates, vectors: Vectors, power: float, tied: bool
) -> StatePosteriors:
    """All states of all rows of ``block``, likelihoods raised to ``power``; ``tied``: ρ = 1."""
    first, second = block.first.clamp(min=0), block.second.clamp(min=0)
    y = features.values[block.rows] / features.noise_variance
    along = y @ vectors.mean.T  # (B, n) ⟨y, u⟩
    gram = (vectors.mean / features.noise_variance) @ vectors.mean.T + vectors.covariance
    own = gram.diagonal()
    a, b = block.coefficients[:, None, None, :, 0, None], block.coefficients[:, None, None, :, 1, None]
    shape = (slice(None), slice(None), None, None, None)
    shape2 = (slice(None), None, slice(None), None, None)
    rho = torch.ones(1) if tied or features.signs_known else torch.tensor([1.0, -1.0])
    left = along.gather(1, first)[shape] * a
    right = along.gather(1, second)[shape2] * b * rho
    crossed = gram[first[:, :, None], second[:, None, :]][:, :, :, None, None]
    length = a**2 * own[first][shape] + b**2 * own[second][shape2] + 2 * a * b * rho * crossed
    t = power * (left + right)
    if features.signs_known:
        log_states, sign = t - power * length / 2, torch.ones_like(t)
    else:
        log_states = log_cosh(t) - power * length / 2
        sign = torch.tanh(t)
    log_states = log_states + vectors.prices[first][shape] + vectors.prices[second][shape2]
    wrong = (block.first < 0)[shape] | (block.second < 0)[shape2] | (first[shape] == second[shape2])
    log_states = log_states.masked_fill(wrong, -torch.inf)
    possible = (~wrong).expand_as(log_states).flatten(1).sum(1)
    total = log_states.flatten(1).logsumexp(1)
    # A row no pair of images can be in (two of a class that was taken to have one) tells nothing.
    total = torch.where(possible > 0, total, torch.zeros(()))
    responsibility = (log_states - total[:, None, None, None, None]).exp()
    return StatePosteriors(responsibility, sign, total - possible.clamp(min=1).log())


def log_cosh(t: torch.Tensor) -> torch.Tensor:
    """log cosh t without overflow."""
    size = t.abs()
    return size + torch.log1p(torch.exp(-2 * size)) - math.log(2.0)


def _expectation(
    features: Features, blocks: list[Candidates], vectors: Vectors, power: float, tied: bool
) -> _Sums:
    n = len(vectors.mean)
    sums = _Sums(torch.zeros(len(features.values), n), torch.zeros(n, n), torch.zeros(n), torch.zeros(n, n))
    for block in blocks:
        states = state_posteriors(features, block, vectors, power, tied)
        _add(sums, block, states)
    target = sums.uses.sum() / n
    vectors.prices.sub_(PRICE_STEP * torch.log(sums.uses.clamp(min=1e-3 * float(target)) / target))
    vectors.prices.clamp_(-MAX_PRICE, MAX_PRICE)
    return sums


def _add(sums: _Sums, block: Candidates, states: StatePosteriors) -> None:
    n = len(sums.uses)
    first, second = block.first.clamp(min=0), block.second.clamp(min=0)
    a, b = block.coefficients[:, None, None, :, 0, None], block.coefficients[:, None, None, :, 1, None]
    R = states.responsibility
    rho = torch.tensor([1.0, -1.0])[: R.shape[4]]
    signed = R * states.sign
    weights = torch.zeros(len(block.rows), n)
    weights.scatter_add_(1, first, (signed * a).sum((2, 3, 4)))
    weights.scatter_add_(1, second, (signed * b * rho).sum((1, 3, 4)))
    sums.weights[block.rows] += weights
    pairs = (first[:, :, None] * n + second[:, None, :]).flatten()
    crossed = torch.zeros(n * n).index_add_(0, pairs, (R * a * b * rho).sum((3, 4)).flatten()).view(n, n)
    sums.gram += crossed + crossed.T
    sums.relative += torch.zeros(n * n).index_add_(0, pairs, (R * rho).sum((3, 4)).flatten()).view(n, n)
    for slot, weight, axes in ((first, a, (2, 3, 4)), (second, b, (1, 3, 4))):
        index = slot.flatten()
        sums.gram.diagonal().index_add_(0, index, (R * weight**2).sum(axes).flatten())
        sums.uses.index_add_(0, index, R.sum(axes).flatten())


def _maximisation(features: Features, sums: _Sums, prices: torch.Tensor) -> Vectors:
    """q(u) by n×n normal equations, one eigendecomposition for all directions."""
    precision = 1 / features.noise_variance
    values, basis = _eigen(sums.gram)
    variance = 1 / (values.clamp(min=0)[:, None] * precision + 1 / features.slope.square())  # (n, r)
    mean = basis @ (variance * precision * (basis.T @ (sums.weights.T @ features.values)))
    covariance = (basis * (variance * precision).sum(1)) @ basis.T
    return Vectors(mean, covariance, prices)


def _eigen(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (ascending) and eigenvectors, by way of float64.

    Images that explain nothing leave rows of zeros and of 1e-6 beside rows of 1: in float32 LAPACK's divide
    and conquer now and then does not converge on such a matrix.
    """
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.to(matrix.dtype), vectors.to(matrix.dtype)
