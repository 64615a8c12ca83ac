from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from instahide.attacks.image_metrics import ssim
from instahide.attacks.published_2020.objective import (
    ObjectiveSettings,
    end_of_descent,
    mixing_matrix,
    objective_gradient,
    objective_value,
    published_objective,
    share_of_positive_mixtures,
    stretched,
)
from instahide.errors import InvalidInputError

N, N_IMAGES, SHAPE = 60, 5, (1, 4, 4)
D = 16


def problem(seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Private rows, coefficients, and encodings with a public part of its own."""
    rng = np.random.default_rng(seed)
    first = np.arange(N) % N_IMAGES
    rows = np.stack([first, (first + rng.integers(1, N_IMAGES, N)) % N_IMAGES], axis=1)
    coefficients = rng.uniform(0.1, 0.5, (N, 2))
    images = rng.uniform(-1, 1, (N_IMAGES, D))
    mixed = (coefficients[:, :, None] * images[rows]).sum(1) + 0.1 * rng.normal(size=(N, D))
    return rows, coefficients, mixed.reshape(N, *SHAPE)


def brute_force_value(
    images: NDArray[np.float64], rows: NDArray[np.int64], weights: NDArray[np.float64], e: NDArray[np.float64]
) -> float:
    """Equation (1) value by value, as one would write it without thinking of speed."""
    total = 0.0
    for n in range(N):
        for p in range(D):
            m = sum(weights[n, s] * images[rows[n, s], p] for s in range(2))
            total += min((abs(e[n, p]) - m) ** 2, (abs(e[n, p]) + m) ** 2)
    push = sum(1 - abs(x) for x in images.ravel()) / images.size
    return total / (N * D) + 0.05 * push


def test_the_value_is_the_published_formula() -> None:
    rows, weights, e = problem(1)
    images = np.random.default_rng(2).normal(size=(N_IMAGES, D))
    value = objective_value(
        torch.from_numpy(images),
        torch.from_numpy(np.abs(e).reshape(N, D)),
        torch.from_numpy(mixing_matrix(rows, weights, N_IMAGES)).double(),
    )
    expected = brute_force_value(images, rows, weights, e.reshape(N, D))
    # Λ is float32: relative errors of 6e-8 in coefficients below 1.
    assert float(value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.05])
def test_the_gradient_is_that_of_automatic_differentiation(weight: float) -> None:
    rows, weights, e = problem(3)
    mixing = mixing_matrix(rows, weights, N_IMAGES).astype(np.float64)
    images = torch.randn(N_IMAGES, D, dtype=torch.float64, requires_grad=True)
    magnitudes = np.abs(e).reshape(N, D)
    value = objective_value(images, torch.from_numpy(magnitudes), torch.from_numpy(mixing), weight)
    value.backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    ours = objective_gradient(images.detach().numpy(), magnitudes, mixing, weight)  # type: ignore[arg-type]
    np.testing.assert_allclose(ours, images.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_at_zero_the_tie_takes_the_second_branch_so_that_images_start_dark() -> None:
    """|e| < |e| is false: what is minimised there is (|e| + m)², whose gradient is positive."""
    rows, weights, e = problem(4)
    mixing, magnitudes = mixing_matrix(rows, weights, N_IMAGES), np.abs(e, dtype=np.float32).reshape(N, D)
    gradient = objective_gradient(np.zeros((N_IMAGES, D), np.float32), magnitudes, mixing)
    np.testing.assert_allclose(gradient, 2 / (N * D) * mixing.T @ magnitudes, rtol=1e-4)
    assert (gradient > 0).all()


def test_the_descent_in_blocks_is_adam_on_the_differentiated_formula() -> None:
    """Independent path: torch's own Adam on equation (1), all pixels at once, in float64."""
    rows, weights, e = problem(5)
    start = np.random.default_rng(6).normal(size=(N_IMAGES, *SHAPE)) * 0.5
    settings = ObjectiveSettings(num_steps=60)
    ours = published_objective(
        e, rows, weights, num_images=N_IMAGES, settings=settings, start=start, stretch=False
    )
    images = torch.tensor(start.reshape(N_IMAGES, D), requires_grad=True)
    adam = torch.optim.Adam([images], lr=0.01)
    mixing = torch.from_numpy(mixing_matrix(rows, weights, N_IMAGES)).double()
    for _ in range(60):
        adam.zero_grad()
        objective_value(images, torch.from_numpy(np.abs(e).reshape(N, D)), mixing).backward()  # type: ignore[no-untyped-call]
        adam.step()
    # Signs of mixtures near zero may differ in float32 for a step: 1e-3 is a tenth of one step.
    np.testing.assert_allclose(ours.reshape(N_IMAGES, D), images.detach().numpy(), atol=1e-3)


def pictures(count: int, seed: int, low: float, high: float) -> NDArray[np.float64]:
    """Smooth random pictures of 16×16 with values from ``low`` to ``high``."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, 20, 20))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(1, 2)).mean(axis=(3, 4))
    unit = (0.5 + 1.2 * smooth).clip(0, 1)
    return (low + (high - low) * unit)[:, None]


def attacked_release(
    low: float, high: float
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
    """1,000 encodings of 20 pictures, two private and two others in one: magnitudes, rows, coefficients."""
    rng = np.random.default_rng(0)
    private, others = pictures(20, 1, low, high), pictures(300, 2, low, high)
    first = np.arange(1000) % 20
    rows = np.stack([first, (first + rng.integers(1, 20, 1000)) % 20], axis=1)
    weights = rng.dirichlet(np.ones(4) * 4, 1000)
    e = (weights[:, :2, None, None, None] * private[rows]).sum(1)
    e = e + (weights[:, 2:, None, None, None] * others[rng.integers(0, 300, (1000, 2))]).sum(1)
    return np.abs(e).astype(np.float32), rows, weights[:, :2]


@functools.cache
def attacked(low: float, high: float) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float32]]:
    """Answer, truth and Λ."""
    e, rows, weights = attacked_release(low, high)
    found = published_objective(e, rows, weights, num_images=20, stretch=False)
    return found, pictures(20, 1, low, high), mixing_matrix(rows, weights, 20)


def correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def test_pictures_on_one_side_of_zero_are_found_and_bright_ones_are_turned_over() -> None:
    found, truth, mixing = attacked(-1.0, -0.2)
    assert share_of_positive_mixtures(found, mixing) == 0.0
    assert correlation(found, truth) > 0.9
    found, truth, mixing = attacked(0.2, 1.0)
    assert share_of_positive_mixtures(found, mixing) == 0.0
    assert correlation(found, truth) < -0.9


def test_pictures_symmetric_about_zero_are_folded() -> None:
    """No mixture ever crosses zero: the answer resembles −|x|, not x."""
    found, truth, mixing = attacked(-1.0, 1.0)
    assert share_of_positive_mixtures(found, mixing) == 0.0
    assert abs(correlation(found, truth)) < 0.3
    assert correlation(found, -np.abs(truth)) > 0.5


def test_from_a_good_start_the_objective_keeps_symmetric_pictures() -> None:
    """What fails is the start, not the formula."""
    rng = np.random.default_rng(0)
    private = pictures(20, 1, -1.0, 1.0)
    first = np.arange(1000) % 20
    rows = np.stack([first, (first + rng.integers(1, 20, 1000)) % 20], axis=1)
    weights = rng.uniform(0.2, 0.6, (1000, 2))
    e = (weights[:, :, None, None, None] * private[rows]).sum(1)
    plain = ObjectiveSettings(extreme_weight=0.0)
    found = published_objective(e, rows, weights, num_images=20, settings=plain, start=private, stretch=False)
    assert ssim(found.clip(-1, 1), private).mean() > 0.99


def test_where_the_end_of_the_descent_is_known_the_steps_arrive_there() -> None:
    """1,000 steps of Adam against one solution of the normal equations."""
    found, _, mixing = attacked(-1.0, 1.0)
    magnitudes, rows, weights = attacked_release(-1.0, 1.0)
    end = end_of_descent(magnitudes.reshape(1000, -1), mixing, ObjectiveSettings())
    assert end is not None
    np.testing.assert_allclose(found.reshape(20, -1), end, atol=1e-4)
    quick = published_objective(magnitudes, rows, weights, num_images=20, stretch=False, shortcut=True)
    np.testing.assert_array_equal(quick.reshape(20, -1), end)
    # The gradient (2) vanishes there.
    gradient = objective_gradient(end, magnitudes.reshape(1000, -1), mixing)
    scale = np.abs(objective_gradient(np.zeros_like(end), magnitudes.reshape(1000, -1), mixing)).mean()
    assert np.abs(gradient).max() < 1e-4 * scale


def test_an_end_that_is_not_certain_is_not_given() -> None:
    rows, weights, e = problem(9)
    magnitudes = np.abs(e, dtype=np.float32).reshape(N, D)
    mixing = mixing_matrix(rows, weights, N_IMAGES)
    twins = np.repeat(mixing[:, :1], 2, axis=1)
    assert end_of_descent(magnitudes, twins, ObjectiveSettings()) is None
    assert end_of_descent(magnitudes, mixing, ObjectiveSettings(num_steps=5)) is None
    assert end_of_descent(magnitudes, np.zeros_like(mixing), ObjectiveSettings()) is None


def test_unknown_rows_and_repeated_rows() -> None:
    mixing = mixing_matrix(
        np.array([[0, -1], [1, 1], [-1, -1]]), np.array([[0.2, 0.9], [0.1, 0.3], [1, 1]]), 2
    )
    np.testing.assert_allclose(mixing, [[0.2, 0], [0, 0.4], [0, 0]])


def test_stretching_fills_the_range_image_by_image() -> None:
    images = np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype(np.float32)
    flat = stretched(images).reshape(3, -1)
    np.testing.assert_allclose(flat.min(axis=1), -1)
    np.testing.assert_allclose(flat.max(axis=1), 1)
    assert np.isfinite(stretched(np.zeros((1, 1, 4, 4), np.float32))).all()


def test_a_budget_means_fewer_steps_and_still_every_pixel() -> None:
    rows, weights, e = problem(7)
    hurried = published_objective(e, rows, weights, num_images=N_IMAGES, stretch=False, max_seconds=0.0)
    # One step of Adam from zero moves every value by the learning rate.
    np.testing.assert_allclose(np.abs(hurried), 0.01, rtol=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"private_rows": np.full((N, 2), 9)}, "rows from 9"),
        ({"private_rows": np.zeros((N - 1, 2), np.int64)}, "shape"),
        ({"encodings": np.full((N, *SHAPE), np.nan)}, "not numbers"),
        ({"encodings": np.zeros((N, D))}, "shape"),
        ({"start": np.zeros((1, *SHAPE))}, "start"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    change: dict[str, NDArray[np.float64]], message: str
) -> None:
    rows, weights, e = problem(8)
    given = {"encodings": e, "private_rows": rows, "coefficients": weights, **change}
    with pytest.raises(InvalidInputError, match=message):
        published_objective(**given, num_images=N_IMAGES)  # type: ignore[arg-type]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidInputError):
        ObjectiveSettings(num_steps=0)
