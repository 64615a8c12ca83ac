"""The Bayes factor of images found, against sums over all states written out with scipy."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from instahide.attacks.recovery import pairing_predictive
from instahide.attacks.recovery.pairing_features import Features, ImagePrior
from instahide.attacks.recovery.pairing_model import Candidates, Vectors, fit
from instahide.attacks.recovery.pairing_predictive import log_bayes_factors, posterior_variance

N, n, r = 6, 4, 5
NOTHING = torch.empty(0)


def example(*, signs_known: bool = False) -> tuple[Features, Vectors, Candidates]:
    draw = torch.Generator().manual_seed(3)
    slope, noise = 0.5 + torch.rand(r, generator=draw), 0.2 + torch.rand(r, generator=draw)
    prior = ImagePrior(NOTHING, NOTHING, NOTHING, 1)
    features = Features(torch.randn(N, r, generator=draw), slope, noise, prior, signs_known)
    information = torch.tensor([0.0, 0.5, 3.0, 40.0])
    variance = 1 / (information[:, None] / noise + 1 / slope.square())
    covariance = torch.diag((variance / noise).sum(1))
    vectors = Vectors(torch.randn(n, r, generator=draw), covariance, torch.zeros(n))
    coefficients = torch.tensor([[[0.4, 0.3], [0.2, 0.5]]]).expand(N, -1, -1)
    every = torch.arange(n).expand(N, -1)
    short = torch.tensor([1, 3, -1, -1]).expand(N, -1)
    return features, vectors, Candidates(torch.arange(N), every, short, coefficients)


def written_out(features: Features, vectors: Vectors, block: Candidates, row: int) -> float:
    noise, slope = features.noise_variance.numpy(), features.slope.numpy()
    variance = posterior_variance(features, vectors).numpy()
    y, weights = features.values[row].numpy(), block.coefficients[row].numpy()

    def density(centre: NDArray[np.float32], spread: NDArray[np.float32]) -> float:
        return float(multivariate_normal(centre, np.diag(spread)).logpdf(y))

    found, signs = [], (1,) if features.signs_known else (1, -1)
    for i, j in itertools.product(range(n), (1, 3)):
        if i == j:
            continue
        for (a, b), sign in itertools.product(weights, signs):
            centre = sign * (a * vectors.mean[i] + b * vectors.mean[j]).numpy()
            found.append(density(centre, noise + a**2 * variance[i] + b**2 * variance[j]))
    unknown = [density(np.zeros(r), noise + (a**2 + b**2) * slope**2) for a, b in weights]
    return float(logsumexp(found) - np.log(len(found)) - logsumexp(unknown) + np.log(len(unknown)))


@pytest.mark.parametrize("signs_known", [False, True])
def test_the_factor_is_the_sum_over_all_states(signs_known: bool) -> None:
    features, vectors, block = example(signs_known=signs_known)
    factors = log_bayes_factors(features, [block], vectors)
    for row in range(N):
        assert float(factors[row]) == pytest.approx(written_out(features, vectors, block, row), abs=1e-3)


def test_variances_sum_to_what_the_fit_says() -> None:
    features, vectors, _ = example()
    total = (posterior_variance(features, vectors) / features.noise_variance).sum(1)
    assert torch.allclose(total, vectors.covariance.diagonal(), rtol=1e-4)


def test_images_of_which_nothing_is_known_gain_nothing() -> None:
    features, vectors, block = example()
    prior = (features.slope.square() / features.noise_variance).sum()
    blank = Vectors(torch.zeros(n, r), torch.eye(n) * prior, vectors.prices)
    assert log_bayes_factors(features, [block], blank).abs().max() < 1e-4


def test_sums_over_the_likeliest_pairs_only_are_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    features, vectors, block = example()
    whole = log_bayes_factors(features, [block], vectors)
    monkeypatch.setattr(pairing_predictive, "MAX_PAIRS", 2)
    monkeypatch.setattr(pairing_predictive, "BLOCK_VALUES", 1)
    part = log_bayes_factors(features, [block], vectors)
    assert (part <= whole + 1e-5).all()
    assert (part > whole - 3).all(), "two of six pairs hold most of a sum that has lost log 3 at equal shares"


def test_a_row_that_no_pair_can_be_in_tells_nothing() -> None:
    features, vectors, block = example()
    same = torch.full((N, 2), 1)
    same[:, 1] = -1
    factors = log_bayes_factors(features, [replace(block, first=same, second=same)], vectors)
    assert (factors == 0).all()
    again = fit(features, [replace(block, first=same, second=same)], vectors, np.ones(2), signs_tied=True)
    assert torch.isfinite(again.mean).all()


def test_rows_of_no_group_are_left_at_zero() -> None:
    features, vectors, block = example()
    some = replace(
        block,
        rows=block.rows[:2],
        first=block.first[:2],
        second=block.second[:2],
        coefficients=block.coefficients[:2],
    )
    factors = log_bayes_factors(features, [some], vectors)
    assert (factors[:2] != 0).all()
    assert (factors[2:] == 0).all()
