"""Coefficients follow the published law, its bounds and, in hardened mode, the grid; labels follow them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instahide import EncoderConfig
from instahide.coefficients import draw_coefficients, mix_labels, round_to_grid
from instahide.errors import RefusedError
from instahide.randomness import Keystream, Randomness

N = 100_000


def stream() -> Keystream:
    return Randomness().stream("coefficients")


def compat(num_mixed: int, **values: object) -> EncoderConfig:
    return EncoderConfig(num_mixed=num_mixed, mode="compat", **values)  # type: ignore[arg-type]


def brute_force_law(num_mixed: int, *, dom: float, count: int = 200_000) -> np.ndarray:
    """The published sampler written out with numpy's own normals: an oracle that shares no code."""
    rng = np.random.default_rng(20_200_701)
    rows = np.abs(rng.standard_normal((count, num_mixed)))
    rows /= rows.sum(axis=1, keepdims=True)
    return rows[(rows.max(axis=1) <= 0.65) & (rows[:, :2].sum(axis=1) >= dom)]


@pytest.mark.statistical
def test_inside_with_four_images_has_the_published_statistics() -> None:
    """Published sampler, k=4: mean largest 0.45. Its standard deviation is 0.083, of 100,000 rows' mean
    0.00026 and of the oracle's 0.0002: six sigma of the difference is 0.002."""
    rows = draw_coefficients(stream(), N, compat(4))
    oracle = brute_force_law(4, dom=0.0)
    assert rows.max(axis=1).mean() == pytest.approx(0.45, abs=0.01)
    assert abs(rows.max(axis=1).mean() - oracle.max(axis=1).mean()) < 0.002
    assert abs((rows[:, 0] ** 2).mean() - (oracle[:, 0] ** 2).mean()) < 0.003


@pytest.mark.statistical
@pytest.mark.parametrize(("num_mixed", "private_sum"), [(4, 0.54), (6, 0.435)])
def test_cross_has_the_published_private_sum(num_mixed: int, private_sum: float) -> None:
    """Published: E[l0 + l1] = 0.54 (k=4) and 0.435 (k=6). Standard deviation of a row's sum is below 0.15,
    so six sigma of the difference of two means of 10^5 rows is 0.004."""
    rows = draw_coefficients(stream(), N, compat(num_mixed), num_private=2)
    sums = rows[:, :2].sum(axis=1)
    assert sums.mean() == pytest.approx(private_sum, abs=0.01)
    assert abs(sums.mean() - brute_force_law(num_mixed, dom=0.3)[:, :2].sum(axis=1).mean()) < 0.004
    assert sums.min() >= 0.3


@pytest.mark.statistical
def test_two_images_match_the_closed_form() -> None:
    """k=2: r = |n0|/|n1| is half-Cauchy, so P(l0 <= t) = (2/pi) arctan(t/(1-t)), cut to [0.35, 0.65].

    Kolmogorov distance of N = 100,000: P(> 0.0088) = 2 exp(-2 N 0.0088^2) = 4e-7.
    """
    drawn = np.sort(draw_coefficients(stream(), N, compat(2))[:, 0])
    cdf = 2 / np.pi * np.arctan(drawn / (1 - drawn))
    low, high = 2 / np.pi * np.arctan([0.35 / 0.65, 0.65 / 0.35])
    expected = (cdf - low) / (high - low)
    assert np.abs(expected - (np.arange(N) + 0.5) / N).max() < 0.0088


@pytest.mark.statistical
def test_dirichlet_is_uniform_on_the_simplex() -> None:
    """Without an effective bound each coefficient is Beta(1, k-1): mean 1/4, mean square 2/(4·5) = 0.1.

    Standard deviations 0.194 and 0.14 (both of one draw), so six sigma for N rows: 0.0037 and 0.0027.
    """
    rows = draw_coefficients(stream(), N, compat(4, coefficient_law="dirichlet", max_coefficient=1.0))
    assert abs(rows[:, 0].mean() - 0.25) < 0.0037
    assert abs((rows[:, 3] ** 2).mean() - 0.1) < 0.0027


@given(
    num_mixed=st.integers(1, 16),
    num_private=st.integers(1, 16),
    law=st.sampled_from(["folded-normal", "dirichlet"]),
    mode=st.sampled_from(["compat", "hardened"]),
)
@settings(max_examples=60, deadline=None)
def test_rows_sum_to_one_within_the_bounds(num_mixed: int, num_private: int, law: str, mode: str) -> None:
    num_private = min(num_private, num_mixed)
    least = 0.5 * num_private / num_mixed
    config = EncoderConfig(
        num_mixed=num_mixed, num_private=num_private, mode=mode, coefficient_law=law, min_private_sum=least
    )
    rows = draw_coefficients(stream(), 20, config, num_private=num_private)
    np.testing.assert_allclose(rows.sum(axis=1), 1.0, atol=1e-12)
    assert (rows[:, 0] > 0).all()
    if num_mixed > 1:
        assert rows.max() <= 0.65
        assert rows[:, :num_private].sum(axis=1).min() >= least - 1e-12
    if mode == "hardened":
        assert np.array_equal(rows * 64, np.rint(rows * 64))
        assert (rows.sum(axis=1) == 1).all()


def test_one_image_has_coefficient_one_whatever_the_bound() -> None:
    assert (draw_coefficients(stream(), 5, EncoderConfig(num_mixed=1, num_private=1)) == 1).all()


def test_bounds_that_no_draw_meets_are_refused_with_the_reason() -> None:
    config = EncoderConfig(num_mixed=16, num_private=2, min_private_sum=0.99)
    with pytest.raises(RefusedError, match=r"min_private_sum=0\.99"):
        draw_coefficients(stream(), 3, config, num_private=2)


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=16), st.integers(16, 256))
def test_rounding_to_a_grid_keeps_the_sum_and_moves_nothing_by_a_whole_step(
    values: list[float], grid: int
) -> None:
    row = np.array([values]) / np.sum(values)
    rounded = round_to_grid(row, grid)
    assert rounded.sum() * grid == pytest.approx(grid, abs=1e-9)
    assert np.abs(rounded * grid - np.rint(rounded * grid)).max() < 1e-9
    assert np.abs(rounded - row).max() < 1.0 / grid + 1e-12


def test_compat_labels_sum_to_the_private_coefficients() -> None:
    labels = mix_labels(np.array([[0, 2]]), np.array([[0.3, 0.1]]), 3, compat(4))
    torch.testing.assert_close(labels, torch.tensor([[0.3, 0.0, 0.1]]))


def test_labels_of_one_class_add_up() -> None:
    labels = mix_labels(np.array([[1, 1]]), np.array([[0.3, 0.1]]), 2, EncoderConfig(mode="mixup"))
    torch.testing.assert_close(labels, torch.tensor([[0.0, 1.0]]))


def test_hardened_labels_lie_on_the_grid_and_sum_to_one_exactly() -> None:
    labels = mix_labels(np.array([[0, 1, 2]]), np.array([[5, 6, 9]]) / 64, 3, EncoderConfig())
    assert labels.sum().item() == 1.0
    assert (labels * 64).tolist() == [[16.0, 19.0, 29.0]]  # 64·(5, 6, 9)/20 = 16, 19.2, 28.8
