"""Lower bounds on epsilon hold as often as they say, and are not far below the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from instahide.attacks.epsilon_bounds import (
    clopper_pearson,
    epsilon_from_guesses,
    epsilon_from_one_run,
    epsilon_from_runs,
    gaussian_epsilon_from_runs,
    mu_from_runs,
    one_run_probability,
)
from instahide.privacy_curves import gaussian_epsilon


def gaussian_runs(mu: float, count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-likelihood ratios of N(μ, 1) against N(0, 1), ``count`` runs in either world."""
    rng = np.random.default_rng(seed)
    inside, outside = rng.normal(mu, 1, count), rng.normal(0, 1, count)
    return mu * inside - mu**2 / 2, mu * outside - mu**2 / 2


def randomised_response(
    epsilon: float, count: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Coins, each told truly with probability e^ε / (1 + e^ε): the tightest ε-private mechanism there is."""
    rng = np.random.default_rng(seed)
    coins = rng.random(count) < 0.5
    told = coins ^ (rng.random(count) > 1 / (1 + math.exp(-epsilon)))
    return told + 1e-3 * rng.random(count), coins


def test_limits_of_a_proportion_are_exact() -> None:
    low, high = (float(limit) for limit in clopper_pearson(7, 50, 0.025))
    assert stats.binom.sf(6, 50, low) == pytest.approx(0.025)
    assert stats.binom.cdf(7, 50, high) == pytest.approx(0.025)
    assert clopper_pearson(0, 50, 0.025)[0] == 0
    assert clopper_pearson(50, 50, 0.025)[1] == 1


@pytest.mark.statistical
def test_bounds_from_many_runs_exceed_the_truth_no_oftener_than_they_may() -> None:
    """100 audits at 95 %: more than 16 wrong ones have probability below 1e-5 (binomial, p = 0.05)."""
    truth, wrong_mu, wrong_epsilon = gaussian_epsilon(1e-5, 0.8), 0, 0
    for seed in range(100):
        inside, outside = gaussian_runs(0.8, 150, seed)
        wrong_mu += mu_from_runs(inside, outside) > 0.8
        wrong_epsilon += epsilon_from_runs(inside, outside, 1e-5) > truth
    assert wrong_mu <= 16
    assert wrong_epsilon <= 16


@pytest.mark.statistical
def test_many_runs_come_close_to_a_gaussian_mechanisms_epsilon() -> None:
    """10,000 runs a world: Φ⁻¹ of a rate near 0.3 has standard deviation 0.013, two limits cost 0.07."""
    inside, outside = gaussian_runs(1.0, 10_000, 0)
    assert 0.85 < mu_from_runs(inside, outside) < 1.0
    truth = gaussian_epsilon(1e-5, 1.0)
    assert 0.8 * truth < gaussian_epsilon_from_runs(inside, outside, 1e-5) < truth
    assert 1.3 < epsilon_from_runs(inside, outside, 1e-5) < truth


@pytest.mark.statistical
@pytest.mark.parametrize("epsilon", [0.5, 2.0, 4.0])
def test_one_run_comes_close_to_randomised_response(epsilon: float) -> None:
    """8,000 coins; wrong with probability 5 % at most by the bound, and with fixed seeds never."""
    found = epsilon_from_one_run(*randomised_response(epsilon, 8000, 1), 0.0)
    assert 0.85 * epsilon < found <= epsilon


@pytest.mark.statistical
def test_one_run_exceeds_the_truth_no_oftener_than_it_may() -> None:
    """60 audits at 95 %: more than 12 wrong ones have probability below 1e-5 (binomial, p = 0.05)."""
    wrong = sum(epsilon_from_one_run(*randomised_response(1.0, 200, seed), 1e-5) > 1.0 for seed in range(60))
    assert wrong <= 12


def test_without_delta_one_run_is_a_binomial_tail() -> None:
    for epsilon in (0.0, 1.0, 3.0):
        q = math.exp(epsilon) / (1 + math.exp(epsilon))
        assert one_run_probability(epsilon, 60, 80, 100, 0.0) == pytest.approx(stats.binom.sf(59, 80, q))


def test_delta_adds_what_the_theorem_says() -> None:
    """Theorem 5.2 by its formula, one term after another."""
    q, r, v, m, delta = 1 / (1 + math.exp(-0.7)), 30, 24, 50, 1e-3
    tail = [
        sum(math.comb(r, j) * q**j * (1 - q) ** (r - j) for j in range(v - i, r + 1)) for i in range(v + 1)
    ]
    expected = tail[0] + 2 * m * delta * max((tail[i] - tail[0]) / i for i in range(1, v + 1))
    assert one_run_probability(0.7, v, r, m, delta) == pytest.approx(expected)


def test_more_right_guesses_refute_more_and_delta_refutes_less() -> None:
    bounds = [epsilon_from_guesses(right, 100, 200, 1e-6, 0.05) for right in (50, 70, 90, 100)]
    assert bounds[0] == 0
    assert bounds == sorted(bounds)
    assert epsilon_from_guesses(90, 100, 200, 1e-3, 0.05) < bounds[2]


def test_a_perfect_attack_is_bounded_by_the_number_of_guesses() -> None:
    """All of r right: e^ε/(1 + e^ε) = 0.05^(1/r)."""
    q = 0.05 ** (1 / 100)
    assert epsilon_from_guesses(100, 100, 100, 0.0, 0.05) == pytest.approx(math.log(q / (1 - q)), rel=1e-6)


def test_noise_shows_nothing() -> None:
    rng = np.random.default_rng(0)
    scores, coins = rng.normal(size=1000), rng.random(1000) < 0.5
    assert epsilon_from_one_run(scores, coins, 1e-5) == 0
    assert epsilon_from_runs(scores[coins], scores[~coins], 1e-5) == 0
    assert mu_from_runs(scores[:3], scores[3:6]) == 0
