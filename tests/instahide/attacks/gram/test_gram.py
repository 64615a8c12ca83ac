"""Every step of the Gram attack: moments, line graph, signs, and the whole on data of the theorem's model."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from instahide.attacks.gram.feature_attack import gram_feature_attack, null_check, success_curve
from instahide.attacks.gram.folded_moments import (
    correlation_from_folded_covariance,
    folded_correlations,
    folded_product_moment,
)
from instahide.attacks.gram.gaussian_features import (
    GaussianView,
    gaussian_release,
    kept_share,
    recover_gaussian_features,
    recovered_share,
)
from instahide.attacks.gram.line_graph import incidence, refine_stars, stars_of_line_graph
from instahide.attacks.gram.public_part import expected_private_part, learn_public_rows
from instahide.attacks.gram.signed_regression import solve_signed_regression
from instahide.errors import InvalidInputError


def random_graph(num_images: int, num_edges: int, *, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(num_images, 2, replace=False) for _ in range(num_edges)])


def shared(pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """(m, m) how many images two edges share."""
    equal = pairs[:, None, :, None] == pairs[None, :, None, :]
    return np.asarray(equal.sum(axis=(2, 3)), dtype=np.float64)


@pytest.mark.parametrize("rho", [-0.9, -0.3, 0.0, 0.25, 0.5, 0.95])
def test_the_folded_moment_is_the_integral(rho: float) -> None:
    # E|X||Y| = E[|X|·E[|Y| given X]], the inner mean of a folded normal; outer integral by Gauss-Hermite.
    from scipy.stats import norm

    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    s = math.sqrt(1 - rho**2)
    inner = s * 2 * norm.pdf(rho * nodes / s) + rho * nodes * (1 - 2 * norm.cdf(-rho * nodes / s))
    integral = float((weights * np.abs(nodes) * inner).sum() / math.sqrt(2 * math.pi))
    # |x| has a kink at 0, so 200 nodes are good for about 1e-3.
    assert float(folded_product_moment(rho)) == pytest.approx(integral, abs=2e-3)


@pytest.mark.statistical
def test_the_folded_moment_is_the_mean_of_draws() -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 400_000))
    y = 0.6 * x + 0.8 * noise
    # |XY| has standard deviation below 1.1: the mean of 400,000 is within 5·1.1/632 = 0.009 but for 6e-7.
    assert np.abs(x * y).mean() == pytest.approx(float(folded_product_moment(0.6)), abs=0.009)


def test_correlations_go_to_covariances_and_back() -> None:
    rho = np.linspace(0, 1, 51)
    covariance = folded_product_moment(rho) - 2 / math.pi
    assert covariance[-1] == pytest.approx(1 - 2 / math.pi)
    assert np.allclose(correlation_from_folded_covariance(covariance), rho, atol=1e-6)
    assert correlation_from_folded_covariance(-0.1) == 0.0


def test_inner_products_survive_folding() -> None:
    pairs = random_graph(12, 30, seed=0)
    x = np.random.default_rng(1).normal(size=(12, 200_000))
    estimated = folded_correlations(np.abs(x[pairs].sum(axis=1)))
    # Standard error (1 − 2/π)/√200,000 = 8e-4 in the covariance, π/(2·0.5) times that at ρ = 1/2, and at
    # ρ = 0 the root of π·5·8e-4.
    assert np.abs(estimated - shared(pairs) / 2).max() < 0.13
    assert np.abs(estimated - shared(pairs) / 2)[shared(pairs) > 0].max() < 0.02


@pytest.mark.parametrize("wrong", [0.0, 0.02])
def test_stars_of_a_line_graph_are_the_images(wrong: float) -> None:
    pairs = random_graph(20, 120, seed=2)
    similarity = shared(pairs)
    rng = np.random.default_rng(3)
    flips = np.triu(rng.random(similarity.shape) < wrong, 1)
    adjacent = (similarity > 0) ^ (flips | flips.T)
    told = refine_stars(adjacent.astype(float), stars_of_line_graph(adjacent)[:20])
    groups = {frozenset(np.flatnonzero((told == star).any(axis=1))) for star in range(20)}
    truth = {frozenset(np.flatnonzero((pairs == image).any(axis=1))) for image in range(20)}
    assert groups == truth


def test_no_adjacency_no_stars() -> None:
    assert stars_of_line_graph(np.zeros((5, 5), dtype=bool)) == []
    assert (refine_stars(np.zeros((5, 5)), []) == -1).all()


@pytest.mark.parametrize("with_public", [False, True])
def test_hidden_signs_are_found_as_by_trying_all(with_public: bool) -> None:
    rng = np.random.default_rng(4)
    pairs = np.array([(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 4), (3, 4), (2, 3)])
    x = rng.normal(size=(5, 40))
    p = rng.normal(size=(8, 40)) if with_public else np.zeros((8, 40))
    y = np.abs(x[pairs].sum(axis=1) + p)
    found = solve_signed_regression(pairs, y, num_images=5, public_part=p if with_public else None)
    system = incidence(pairs, 5)
    inverse = np.linalg.pinv(system)
    for feature in range(40):
        right = np.array(list(product((1.0, -1.0), repeat=8))) * y[:, feature] - p[:, feature]
        solutions = right @ inverse.T
        misses = np.abs(solutions @ system.T - right).max(axis=1)
        exact = solutions[misses < 1e-9]
        assert min(np.abs(exact - found[:, feature]).max(axis=1)) < 1e-9
        assert len(exact) == (1 if with_public else 2)


def test_the_public_part_is_learnt_from_second_moments() -> None:
    view, truth = gaussian_release(20, 60, 3072, num_public=2, pool_size=100, seed=5)
    assert view.public is not None
    rows = learn_public_rows(view.magnitudes, view.public, num_public=2, num_mixed=4)
    assert np.array_equal(np.sort(rows, axis=1), np.sort(truth.public_rows, axis=1))


@pytest.mark.statistical
def test_the_expected_private_part_is_the_mean_of_draws() -> None:
    rng = np.random.default_rng(6)
    u = rng.normal(size=1_000_000)
    near = np.abs(np.abs(u + 0.7) - 1.1) < 0.02
    # 15,000 draws of two values 2.2 apart: standard error below 1.1/122 = 0.009; the window adds below 0.01.
    expected = float(expected_private_part(np.array(1.1), np.array(0.7), 1.0))
    assert u[near].mean() == pytest.approx(expected, abs=0.05)


@pytest.mark.statistical
def test_the_share_that_is_kept_is_the_one_seen_in_encodings() -> None:
    view, truth = gaussian_release(10, 40, 20_000, num_public=2, pool_size=100, seed=7)
    assert view.public is not None
    known = view.public[truth.public_rows].sum(axis=1)
    expected = expected_private_part(2 * view.magnitudes, known, 2.0)
    products = expected @ expected.T / 20_000
    # About 300 products with standard error 1.5/√20,000 = 0.01, far from independent.
    assert products[shared(truth.pairs) == 1].mean() == pytest.approx(kept_share(2), abs=0.02)


@pytest.mark.parametrize(("num_public", "pool_size"), [(0, 0), (2, 100)])
def test_all_images_come_out_exactly_as_proved(num_public: int, pool_size: int) -> None:
    view, truth = gaussian_release(15, 100, 3072, num_public=num_public, pool_size=pool_size, seed=8)
    recovery = recover_gaussian_features(view)
    assert recovered_share(recovery, truth) == 1.0


def test_too_few_encodings_do_not_give_all_images() -> None:
    assert success_curve((10,), (0.3,), trials=2, num_features=1024) == {"10 images": [(0.3, 0.0)]}


def test_the_result_carries_checks_and_noise_gives_nothing() -> None:
    result = gram_feature_attack(num_images=8, trials=2, factors=(2.0,))
    assert result.leaked
    assert result.metrics["chance_of_exact_recovery"] > 0
    assert set(result.checks) == {"power", "null"}
    assert "0 images came out" in null_check(10, 3072)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="finite"):
        GaussianView(np.full((2, 3), np.nan), 5)
    with pytest.raises(InvalidInputError, match="num_public"):
        GaussianView(np.ones((2, 3)), 5, num_public=2)
    with pytest.raises(InvalidInputError, match="factors"):
        success_curve((2,), (1.0,))
