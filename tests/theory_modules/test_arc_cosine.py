"""The two Gaussian expectations, against integrals, against each other and at the ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.integrate import quad

from theory_modules.arc_cosine import angle_of, arc_cosine_maps, bend_of, slope_and_bend_polynomials


def maps_at(cosine: float) -> tuple[float, float]:
    c = torch.tensor([cosine], dtype=torch.float64)
    k0, k1 = arc_cosine_maps(1 - c.abs(), c < 0)
    return float(k0), float(k1)


def expectation(function: Callable[[float, float], float], cosine: float) -> float:
    """E over a = r cos φ, b = r cos(φ − θ), the integral over φ of a homogeneous function."""
    theta = math.acos(cosine)
    kinks = [-math.pi / 2, math.pi / 2, theta - math.pi / 2]
    integral, _ = quad(
        lambda phi: function(math.cos(phi), math.cos(phi - theta)), -math.pi, math.pi, points=kinks, limit=400
    )
    return float(integral) / (2 * math.pi)


@pytest.mark.parametrize("cosine", [-0.999, -0.5, 0.0, 0.3, 0.95])
def test_the_maps_are_the_expectations_of_step_and_relu(cosine: float) -> None:
    k0, k1 = maps_at(cosine)
    assert k0 == pytest.approx(2 * expectation(lambda a, b: float(a > 0 and b > 0), cosine), abs=1e-6)
    # E r² = 2 in two dimensions
    assert k1 == pytest.approx(2 * 2 * expectation(lambda a, b: max(a, 0) * max(b, 0), cosine), abs=1e-9)


def test_the_maps_are_exact_at_equal_and_opposite_inputs() -> None:
    assert maps_at(1.0) == (1.0, 1.0)
    assert maps_at(-1.0) == (0.0, 0.0)


def test_the_derivative_of_k1_is_k0() -> None:
    c = torch.linspace(-0.99, 0.99, 199, dtype=torch.float64, requires_grad=True)
    k0, k1 = arc_cosine_maps(1 - c.abs(), c < 0)
    (slope,) = torch.autograd.grad(k1.sum(), c)
    inside = c.detach().abs() > 1e-6
    torch.testing.assert_close(slope[inside], k0.detach()[inside], rtol=0, atol=1e-11)


def test_near_one_the_bend_keeps_its_relative_precision() -> None:
    # bend(θ) = θ³/(3π) (1 − θ²/10 + ...); plain sin θ − θ cos θ has no correct digit at θ = 1e-6
    theta = torch.tensor([1e-6, 1e-4, 1e-2], dtype=torch.float64)
    expected = theta**3 / (3 * math.pi) * (1 - theta**2 / 10 + theta**4 / 280)
    torch.testing.assert_close(bend_of(theta), expected, rtol=1e-12, atol=0)


def test_the_series_of_the_bend_meets_the_direct_form_where_they_change_over() -> None:
    theta = torch.tensor([0.3 - 1e-9, 0.3 + 1e-9], dtype=torch.float64)
    below, above = bend_of(theta).tolist()
    slope = 0.3 * math.sin(0.3) / math.pi  # d bend / dθ
    assert above - below == pytest.approx(2e-9 * slope, abs=1e-14)


@pytest.mark.parametrize(("degrees", "tolerance"), [((6, 4), 8e-8), ((18, 16), 3e-15)])
def test_the_polynomials_of_the_loops_are_good_to_the_type(
    degrees: tuple[int, int], tolerance: float
) -> None:
    slope, bend = (torch.tensor(part, dtype=torch.float64) for part in slope_and_bend_polynomials(*degrees))
    u = torch.linspace(0, 1, 5001, dtype=torch.float64)
    powers = u[:, None] ** torch.arange(32, dtype=torch.float64)
    k0, k1 = arc_cosine_maps(u)
    assert len(slope) == degrees[0] + 1
    assert (1 - u.sqrt() * (powers[:, : len(slope)] @ slope) - k0).abs().max() < tolerance
    assert (1 - u + u * u.sqrt() * (powers[:, : len(bend)] @ bend) - k1).abs().max() < tolerance


def test_the_angle_of_a_small_gap_is_its_square_root() -> None:
    gap = torch.tensor([1e-16, 1e-12], dtype=torch.float64)
    torch.testing.assert_close(angle_of(gap), (2 * gap).sqrt(), rtol=1e-12, atol=0)
