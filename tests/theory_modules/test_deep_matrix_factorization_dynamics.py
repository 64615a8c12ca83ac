"""Theorem 3 and its relatives, against integrations that know nothing of them."""

from __future__ import annotations

import numpy as np
import pytest

from theory_modules.deep_matrix_factorization_dynamics import (
    FactorFlow,
    end_to_end_flow,
    end_to_end_velocity,
    factor_flow,
    theorem_3_rates,
    verify_dynamics,
)
from theory_modules.deep_matrix_factorization_layers import balanced_layers
from theory_modules.deep_matrix_factorization_tracking import track_singular_values


def instance(n: int, p: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A rank-2 target, half of it known, and a start with distinct singular values of order one half."""
    rng = np.random.default_rng(seed)
    target = rng.standard_normal((n, 2)) @ rng.standard_normal((2, p)) / np.sqrt(2)
    mask = rng.random((n, p)) < 0.5
    U, _ = np.linalg.qr(rng.standard_normal((n, n)))
    V, _ = np.linalg.qr(rng.standard_normal((p, p)))
    k = min(n, p)
    return target, mask, U[:, :k] * np.linspace(0.9, 0.3, k) @ V[:, :k].T


def flow_of(depth: int, n: int = 6, p: int = 6, *, step: float = 2e-3, num_steps: int = 400) -> FactorFlow:
    target, mask, start = instance(n, p)
    return factor_flow(target, mask, start, depth=depth, step=step, num_steps=num_steps, record_every=1)


def slope(steps: list[float], errors: list[float]) -> float:
    """Order of convergence: the slope of log error against log step."""
    return float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize(("n", "p"), [(6, 6), (5, 8), (8, 5)])
def test_the_formulas_hold_along_the_flow_of_the_layers(depth, n, p):
    report = verify_dynamics(flow_of(depth, n, p))
    assert report.balancedness < 1e-9
    assert report.end_to_end < 1e-8
    assert report.singular_values < 1e-8
    if n == p:
        assert report.singular_vectors < 1e-6  # divided by the least gap of the values
    # Values that nearly meet turn sharply; the next tests show that the error falls with the step.
    assert report.finite_differences < 5e-2


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_wrong_exponent_or_factor_is_noticed(depth):
    """The comparison can fail: the rates of depth N + 1 are not those of depth N."""
    flow = flow_of(depth, num_steps=20)
    svd = track_singular_values(flow.path)
    right, wrong = (theorem_3_rates(svd, 10, flow.gradient(10), d) for d in (depth, depth + 1))
    assert np.abs(right - wrong).max() > 1e-2 * np.abs(right).max()


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_finite_differences_of_tracked_values_converge_with_the_square_of_the_step(depth):
    flow = flow_of(depth, step=5e-4, num_steps=160)
    errors, steps = [], [8, 4, 2]
    svd = track_singular_values(flow.path)
    rates = theorem_3_rates(svd, 80, flow.gradient(80), depth)
    for width in steps:
        span = flow.times[80 + width] - flow.times[80 - width]
        errors.append(np.abs((svd.values[80 + width] - svd.values[80 - width]) / span - rates).max())
    assert slope(steps, errors) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_end_to_end_flow_and_the_layers_converge_to_each_other_at_fourth_order(depth):
    target, mask, start = instance(6, 6)
    exact = factor_flow(target, mask, start, depth=depth, step=1e-3, num_steps=1000, record_every=1000).path[
        -1
    ]
    steps, errors = [0.1, 0.05, 0.025], []
    for step in steps:
        W = end_to_end_flow(target, mask, start, depth=depth, step=step, num_steps=round(1 / step))
        errors.append(np.abs(W - exact).max())
    assert errors[-1] < 1e-5
    assert slope(steps, errors) == pytest.approx(4, abs=0.5)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradient_descent_follows_the_flow_to_first_order_in_its_rate(depth):
    target, mask, start = instance(6, 6)
    exact = factor_flow(target, mask, start, depth=depth, step=1e-3, num_steps=1000, record_every=1000).path[
        -1
    ]
    rates, errors = [2e-3, 1e-3, 5e-4], []
    for rate in rates:
        layers = [layer.numpy() for layer in balanced_layers(_tensor(start), depth)]
        for _ in range(round(1 / rate)):
            products = [np.eye(6)]
            for layer in layers:
                products.append(layer @ products[-1])
            signal, gradients = (products[-1] - target) * mask, []
            for j in range(depth - 1, -1, -1):
                gradients.insert(0, signal @ products[j].T)
                signal = layers[j].T @ signal
            layers = [w - rate * g for w, g in zip(layers, gradients, strict=True)]
        product = np.eye(6)
        for layer in layers:
            product = layer @ product
        errors.append(np.abs(product - exact).max())
    assert slope(rates, errors) == pytest.approx(1, abs=0.1)


def test_singular_values_are_followed_through_a_crossing():
    """Start and target share their vectors: each value obeys dσ/dt = −N σ^(2−2/N)(σ − y) by itself, and

    crosses.
    """
    rng = np.random.default_rng(3)
    U, V = (np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(2))
    start, goal = np.array([0.9, 0.7, 0.5, 0.3]), np.array([0.2, 1.5, 0.1, 2.0])
    flow = factor_flow(
        U * goal @ V.T, np.ones((4, 4)), U * start @ V.T, depth=2, step=2e-3, num_steps=1500, record_every=5
    )
    values = track_singular_values(flow.path).values
    s, expected = start.copy(), [start]
    for now in range(1500):  # the scalar equations, by the same method
        k1 = -2 * s * (s - goal)
        k2 = -2 * (s + 1e-3 * k1) * (s + 1e-3 * k1 - goal)
        k3 = -2 * (s + 1e-3 * k2) * (s + 1e-3 * k2 - goal)
        k4 = -2 * (s + 2e-3 * k3) * (s + 2e-3 * k3 - goal)
        s = s + 2e-3 * (k1 + 2 * k2 + 2 * k3 + k4) / 6
        if now % 5 == 4:
            expected.append(s)
    np.testing.assert_allclose(values, np.array(expected), atol=1e-9)
    assert (np.argsort(values[0]) != np.argsort(values[-1])).any()


def test_signed_values_pass_through_zero_at_depth_one():
    """At depth 1 dσ/dt = −(σ − y): σ(t) = y + (σ₀ − y)e^(−t), negative in the end if y is."""
    rng = np.random.default_rng(4)
    U, V = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
    start, goal = np.array([0.9, 0.6, 0.25]), np.array([1.0, -0.5, 0.1])
    flow = factor_flow(U * goal @ V.T, np.ones((3, 3)), U * start @ V.T, depth=1, step=1e-2, num_steps=300)
    values = track_singular_values(flow.path).values
    expected = goal + (start - goal) * np.exp(-flow.times)[:, None]
    np.testing.assert_allclose(values, expected, atol=1e-8)
    assert values[-1, 1] < -0.4


def test_a_sample_on_the_crossing_itself_does_not_lose_the_thread():
    rng = np.random.default_rng(5)
    U, V = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
    t = np.linspace(0, 1, 21)  # the first two meet exactly at t = 1/2, a sample
    curves = np.stack([1 + t, 2 - t, 0.2 + 0 * t], axis=1)
    path = np.einsum("nk,tk,pk->tnp", U, curves, V)
    tracked = track_singular_values(path).values
    order = np.argsort(-curves[0])
    np.testing.assert_allclose(tracked, curves[:, order], atol=1e-12)


def test_the_gradient_of_one_layer_is_the_end_to_end_velocity_at_depth_one():
    target, mask, start = instance(5, 7)
    G = (start - target) * mask
    np.testing.assert_allclose(end_to_end_velocity(start, G, 1), -G, atol=1e-12)


def test_what_is_large_grows_fast_and_the_deeper_the_more():
    """Rich get richer: with the same gradient, the second value lags further behind at greater depth."""
    lags = []
    for depth in (1, 2, 3, 4):
        rng = np.random.default_rng(6)
        U, V = (np.linalg.qr(rng.standard_normal((2, 2)))[0] for _ in range(2))
        flow = factor_flow(
            U * [1.0, 0.9] @ V.T,
            np.ones((2, 2)),
            U * [0.1, 0.05] @ V.T,
            depth=depth,
            step=1e-2,
            num_steps=2000,
        )
        values = track_singular_values(flow.path).values
        half = [flow.times[np.argmax(values[:, r] > 0.5 * goal)] for r, goal in enumerate((1.0, 0.9))]
        lags.append(half[1] / half[0])
    assert lags == sorted(lags)
    assert lags[3] > 1.5 * lags[0]


def _tensor(array: np.ndarray):
    import torch

    return torch.as_tensor(array)
