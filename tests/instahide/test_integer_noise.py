"""Noise in whole numbers: the right law to the last bit that matters, and no float of a secret in it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from instahide.integer_noise import (
    GAUSSIAN_UNITS,
    LAPLACE_UNITS,
    MOST_EPSILON,
    NoiseTable,
    _gaussian_table,
    _laplace_tables,
    add_noise,
    draw_noise,
    sampling_error,
)
from instahide.randomness import Keystream, Randomness

mpmath = pytest.importorskip("mpmath")


class Scripted(Keystream):
    """A stream whose words are given: to reach what chance practically never does."""

    def __init__(self, *words: int) -> None:
        self._script = list(words)

    def words(self, count: int) -> np.ndarray:
        taken, self._script = self._script[:count], self._script[count:]
        return np.array(taken, dtype=np.uint64)


def tabled_probability(table: NoiseTable, index: int) -> mpmath.mpf:
    """P(draw = index) exactly, as the 128-bit bounds have it."""
    if hasattr(table, "_last"):
        index = table._last - index
    bounds = [0, *(int(h) * 2**64 + int(w) for h, w in zip(table._high, table._low, strict=True)), 2**128]
    return mpmath.mpf(bounds[index + 1] - bounds[index]) / 2**128


@pytest.mark.parametrize("sd", [0.0, 0.3, 1.0, 3.0, 6.0, 8.0])
def test_gaussian_probabilities_are_right_to_2_to_the_minus_45(sd: float) -> None:
    j, table = round(sd * GAUSSIAN_UNITS), _gaussian_table()
    with mpmath.workdps(60):
        root = GAUSSIAN_UNITS * mpmath.sqrt(2)
        below, above = (mpmath.erf((j + side) / root) for side in (-0.5, 0.5))
        exact = above if j == 0 else above - below
        assert abs(tabled_probability(table, j) / exact - 1) < mpmath.mpf(2) ** -45


def test_laplace_probabilities_are_right_to_2_to_the_minus_45() -> None:
    at_zero, high, low = _laplace_tables()
    with mpmath.workdps(60):
        h = mpmath.mpf(1) / LAPLACE_UNITS
        assert abs(tabled_probability(at_zero, 0) / (1 - mpmath.exp(-h / 2)) - 1) < mpmath.mpf(2) ** -45
        for a, r in ((0, 0), (3, 17), (300, 4095), (5000, 1)):
            exact = (1 - mpmath.exp(-h)) * mpmath.exp(-h * (4096 * a + r))
            ours = tabled_probability(high, a) * tabled_probability(low, r)
            assert abs(ours / exact - 1) < mpmath.mpf(2) ** -45


def test_a_draw_on_a_bound_is_decided_by_the_next_64_bits() -> None:
    table = NoiseTable(np.array([1.0, 2.0, 5.0]))  # bounds at 1/8 and 3/8
    assert table.draw(Scripted(2**61, 0), 1).tolist() == [1]  # exactly 1/8: not below it
    assert table.draw(Scripted(2**61 - 1), 1).tolist() == [0]
    thirds = NoiseTable(np.array([1.0, 1.0, 1.0]))  # 1/3 = 0x5555…
    third = (2**128 // 3) >> 64
    assert thirds.draw(Scripted(third, third - 1), 1).tolist() == [0]
    assert thirds.draw(Scripted(third, third), 1).tolist() == [1]


def test_equal_bounds_are_passed_together() -> None:
    table = NoiseTable(np.array([1.0, 0.0, 0.0, 1.0]))
    assert table.draw(Scripted(2**63, 5), 1).tolist() == [3]
    assert table.draw(Scripted(2**63 - 1), 1).tolist() == [0]


@pytest.mark.statistical
@pytest.mark.parametrize(("law", "units"), [("gaussian", GAUSSIAN_UNITS), ("laplace", LAPLACE_UNITS)])
def test_draws_follow_their_law(law: str, units: int) -> None:
    """Kolmogorov–Smirnov on 200,000 draws; fails by chance once in a million."""
    noise = draw_noise(Randomness().stream("noise"), 200_000, law) / units
    assert stats.kstest(noise, "norm" if law == "gaussian" else "laplace").pvalue > 1e-6


def test_noisy_values_lie_on_a_grid_that_does_not_depend_on_them() -> None:
    values = np.array([0.1, -0.7, 1 / 3])
    step = 0.5 / GAUSSIAN_UNITS
    steps = add_noise(Randomness().stream("noise"), values, "gaussian", 0.5) / step
    assert np.array_equal(steps, np.rint(steps))


def test_the_error_of_the_draws_is_small_against_any_delta_in_use() -> None:
    a, eta = sampling_error(10**9)  # ten thousand steps of a model of 100,000 weights
    assert a < 1e-4
    assert math.exp(MOST_EPSILON) * eta < 1e-9
