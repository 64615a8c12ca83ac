"""Closed forms and accountants agree with each other and with chance itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from instahide.errors import InvalidInputError
from instahide.privacy_curves import (
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    laplace_epsilons,
    require,
    sampled_gaussian_epsilon,
)


@pytest.mark.parametrize("mu", [0.2, 1.0, 3.5])
def test_the_gaussian_curve_is_the_accountants(mu: float) -> None:
    accounting = pytest.importorskip("dp_accounting")
    pld = accounting.pld.PLDAccountant()
    pld.compose(accounting.GaussianDpEvent(1 / mu))
    rdp = accounting.rdp.RdpAccountant()
    rdp.compose(accounting.GaussianDpEvent(1 / mu))
    epsilon = gaussian_epsilon(1e-5, mu)
    assert pld.get_epsilon(1e-5) == pytest.approx(epsilon, rel=1e-4)
    assert epsilon <= rdp.get_epsilon(1e-5) <= 1.25 * epsilon + 0.02


def test_gaussian_releases_compose_by_adding_squares() -> None:
    accounting = pytest.importorskip("dp_accounting")
    pld = accounting.pld.PLDAccountant()
    for multiplier in (2.0, 3.0, 3.0):
        pld.compose(accounting.GaussianDpEvent(multiplier))
    mu = math.sqrt(1 / 4 + 2 / 9)
    assert pld.get_epsilon(1e-6) == pytest.approx(gaussian_epsilon(1e-6, mu), rel=1e-3)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-5), (1.0, 1e-6), (20.0, 1e-5)])
def test_the_noise_for_an_epsilon_gives_that_epsilon(epsilon: float, delta: float) -> None:
    assert gaussian_epsilon(delta, gaussian_mu(epsilon, delta)) == pytest.approx(epsilon, rel=1e-6)


def test_delta_of_the_gaussian_curve_by_numerical_integration() -> None:
    x = np.linspace(-12, 16, 400_001)
    p, q = (np.exp(-0.5 * (x - shift) ** 2) / math.sqrt(2 * math.pi) for shift in (1.3, 0.0))
    integral = np.maximum(p - math.exp(0.7) * q, 0).sum() * (x[1] - x[0])
    assert gaussian_delta(0.7, 1.3) == pytest.approx(integral, rel=1e-5)


@pytest.mark.statistical
def test_laplace_bounds_hold_and_the_loss_distribution_is_tight() -> None:
    """δ(ε) = E[max(0, 1 − e^(ε − L))], the loss L sampled: 100 coordinates moved by b/3, one by 2b.

    At the bound's ε the estimate must be δ = 0.01; 200,000 samples of a variable in [0, 1] with mean 0.01
    have a standard deviation below 0.1 / 447 = 2.2e-4, and six of them are 1.4e-3.
    """
    pytest.importorskip("dp_accounting")
    bounds = laplace_epsilons([(1 / 3, 100), (2.0, 1)], 0.01)
    rng, losses = np.random.default_rng(0), []
    for _ in range(20):
        many = rng.laplace(size=(10_000, 100)).astype(np.float32)
        one = rng.laplace(size=10_000)
        losses.append((np.abs(many - 1 / 3) - np.abs(many)).sum(axis=1) + np.abs(one - 2.0) - np.abs(one))
    loss = np.concatenate(losses)
    estimate = np.maximum(0, -np.expm1(bounds["pld"] - loss)).mean()
    assert abs(estimate - 0.01) < 1.4e-3
    assert bounds["pld"] <= bounds["rdp"] <= bounds["composition"] == pytest.approx(100 / 3 + 2)


def test_sampled_gaussian_accountants_agree() -> None:
    pytest.importorskip("dp_accounting")
    by_pld = sampled_gaussian_epsilon(1.1, 0.05, 200, 1e-5)
    by_rdp = sampled_gaussian_epsilon(1.1, 0.05, 200, 1e-5, method="rdp")
    assert by_pld <= by_rdp <= 1.25 * by_pld


def test_without_sampling_the_sampled_gaussian_is_the_closed_form() -> None:
    pytest.importorskip("dp_accounting")
    closed = gaussian_epsilon(1e-5, math.sqrt(30) / 4)
    assert sampled_gaussian_epsilon(4.0, 1.0, 30, 1e-5) == pytest.approx(closed, rel=1e-3)


@pytest.mark.slow
def test_opacus_own_accountant_agrees() -> None:
    pytest.importorskip("opacus")
    by_pld = sampled_gaussian_epsilon(1.1, 0.05, 200, 1e-5)
    assert sampled_gaussian_epsilon(1.1, 0.05, 200, 1e-5, method="prv") == pytest.approx(by_pld, rel=0.02)


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(InvalidInputError, match="no-such-accounting") as refusal:
        require("no_such_accounting")
    assert "instahide-fl[dp]" in refusal.value.hint


@pytest.mark.parametrize("delta", [0.0, 1.0, float("nan")])
def test_a_delta_that_is_no_probability_is_refused(delta: float) -> None:
    with pytest.raises(InvalidInputError, match="target_delta"):
        gaussian_epsilon(delta, 1.0)
