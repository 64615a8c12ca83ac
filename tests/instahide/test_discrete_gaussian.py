"""The discrete Gaussian's sampler against the definition and against the exact rejection sampler."""

from __future__ import annotations

import math
import secrets
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chi2

from instahide.discrete_gaussian import LARGEST_TABLE, DiscreteGaussian
from instahide.errors import InvalidInputError
from instahide.randomness import Randomness


def draws(scale: float, count: int) -> np.ndarray:
    return DiscreteGaussian(scale).draw(Randomness().stream("noise"), count)


def chi_square_p(observed: np.ndarray, expected: np.ndarray) -> float:
    """p of Pearson's test over cells with five expected draws or more; the rest are one cell."""
    large = expected >= 5
    cells = np.append(observed[large], observed[~large].sum())
    means = np.append(expected[large], expected[~large].sum())
    kept = means > 0
    statistic = float(((cells[kept] - means[kept]) ** 2 / means[kept]).sum())
    return float(chi2.sf(statistic, kept.sum() - 1))


def probabilities(scale: float, reach: int) -> np.ndarray:
    """The definition, normalised by its sum over far more than the reach."""
    weights = np.exp(-(np.arange(-4 * reach, 4 * reach + 1) ** 2) / (2 * scale**2))
    return np.asarray(weights[3 * reach : -3 * reach] / weights.sum())


@pytest.mark.statistical
@pytest.mark.parametrize("scale", [0.3, 0.8, 3.7, 25.0])
def test_a_table_draws_the_definition(scale: float) -> None:
    """False alarm: one of four in 2,500,000 tries, as p < 1e-7."""
    count, reach = 200_000, math.ceil(8 * scale)
    counts = np.bincount(draws(scale, count) + 10 * reach, minlength=20 * reach + 1)[
        9 * reach : 11 * reach + 1
    ]
    assert chi_square_p(counts, count * probabilities(scale, reach)) > 1e-7


@pytest.mark.statistical
def test_two_draws_added_have_the_density_of_one() -> None:
    """Scale 10,000 in cells of 500, by the density's sums; false alarm 1e-7."""
    scale, count, reach = 2.5 * LARGEST_TABLE, 200_000, 90_000
    assert DiscreteGaussian(scale).table_draws > 1
    edges = np.arange(-reach, reach + 1, 500)
    observed, _ = np.histogram(draws(scale, count), edges)
    exact = probabilities(scale, reach)
    expected = count * np.add.reduceat(exact[: 2 * reach], edges[:-1] + reach)
    assert chi_square_p(observed, expected) > 1e-7


@pytest.mark.statistical
def test_two_draws_added_leave_no_gap_between_multiples() -> None:
    """Every residue of the coarse factor and of small numbers is as likely as any other; false alarm 3e-7."""
    values = draws(3 * LARGEST_TABLE, 200_000)
    for modulus in (2, 3, 16):
        counts = np.bincount(values % modulus, minlength=modulus)
        assert chi_square_p(counts, np.full(modulus, len(values) / modulus)) > 1e-7


@pytest.mark.statistical
def test_the_table_and_the_exact_rejection_sampler_agree() -> None:
    """Two samples of 20,000 at scale 2 by cells of one; false alarm 1e-7."""
    count, scale = 20_000, 2
    ours = np.bincount(draws(scale, count) + 40, minlength=81)
    exact = np.bincount(np.array([exact_draw(scale**2) for _ in range(count)]) + 40, minlength=81)
    both = ours + exact
    kept = both >= 20
    statistic = ((ours - exact)[kept] ** 2 / both[kept]).sum()
    assert chi2.sf(statistic, kept.sum()) > 1e-7


def bernoulli_exp(gamma: Fraction) -> bool:
    """True with probability e^−γ, by whole numbers only (Canonne, Kamath, Steinke 2020, algorithm 1)."""
    while gamma > 1:
        if not bernoulli_exp(Fraction(1)):
            return False
        gamma -= 1
    k = 1
    while secrets.randbelow(gamma.denominator * k) < gamma.numerator:
        k += 1
    return k % 2 == 1


def exact_draw(variance: int) -> int:
    """One draw of whole ``variance`` by rejection from the discrete Laplace (algorithms 2 and 3)."""
    t = math.isqrt(variance) + 1
    while True:
        u = secrets.randbelow(t)
        if not bernoulli_exp(Fraction(u, t)):
            continue
        v = 0
        while bernoulli_exp(Fraction(1)):
            v += 1
        sign, size = secrets.randbelow(2), u + t * v
        if sign and not size:
            continue
        if bernoulli_exp(Fraction((size * t - variance) ** 2, 2 * variance * t * t)):
            return -size if sign else size


@pytest.mark.parametrize("scale", [1.0, 4096.0, 5000.0, 1e7, 2.0**40])
def test_the_variances_of_the_parts_add_up_and_no_draw_is_beyond_the_reach(scale: float) -> None:
    distribution = DiscreteGaussian(scale)
    assert variance(distribution) == pytest.approx(scale**2, rel=1e-9)
    assert distribution.reach <= 13 * scale
    assert np.abs(distribution.draw(Randomness().stream("noise"), 1000)).max() <= distribution.reach


def variance(distribution: DiscreteGaussian) -> float:
    if distribution._fine is None:
        return distribution.scale**2
    assert distribution._fine.scale == 4 * distribution._factor  # what leaves no gap
    assert distribution._coarse.scale >= 16
    return variance(distribution._fine) + distribution._factor**2 * variance(distribution._coarse)


def test_the_sum_of_fine_and_coarse_is_the_single_distribution_to_many_digits() -> None:
    """All of the convolution, at a small size: A of scale 4·5 plus 5·B of scale 16."""
    k, fine, coarse = 5, 20.0, 16.0
    a, b = np.arange(-400, 401), np.arange(-320, 321)
    total = np.zeros(4001)
    weights_a = np.exp(-(a**2) / (2 * fine**2))
    for value, weight in zip(b, np.exp(-(b**2) / (2 * coarse**2)), strict=True):
        total[2000 + k * value - 400 : 2000 + k * value + 401] += weight * weights_a
    exact = np.exp(-(np.arange(-2000, 2001) ** 2) / (2 * (fine**2 + (k * coarse) ** 2)))
    ratio = (total / total.sum()) / (exact / exact.sum())
    assert np.abs(ratio[1500:2501] - 1).max() < 1e-12


@pytest.mark.parametrize("scale", [0.0, 1e13, math.nan])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(InvalidInputError):
        DiscreteGaussian(scale)
