r"""The two expectations behind every kernel of a ReLU network, and the correlation they are taken at.

For jointly Gaussian a, b of variance 1 and correlation c, θ = arccos c (Cho and Saul, *Kernel methods for
deep learning*, NeurIPS 2009, orders 0 and 1):

    k0(c) = (π − θ) / π                   = 2 E[1(a > 0) 1(b > 0)]
    k1(c) = (sin θ + c (π − θ)) / π       = 2 E[relu(a) relu(b)]          k1' = k0
    k0(−c) = 1 − k0(c)                      k1(−c) = k1(c) − c

Near c = 1 the correlation itself is the wrong number to carry: rounding c by 6e-8 moves k0 by 1e-4, which is
what equal inputs in float32 suffer elsewhere. Everything here is a function of the *gap* u = 1 − |c| and of
the sign of c, and u is found from differences where it is small: 2u = ‖x/‖x‖ ∓ z/‖z‖‖². With half the angle,
sin²(θ/2) = u/2,

    k0 = 1 − θ/π              k1 = c + bend(u),     bend = (sin θ − θ cos θ)/π       for c ≥ 0
    k0 = θ/π                  k1 = bend(u)                                           for c < 0, θ = arccos |c|

so 1 − k1 = u − bend(u) keeps its relative precision from one layer to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


def angle_of(gap: torch.Tensor) -> torch.Tensor:
    """θ = arccos(1 − u) for gaps u in [0, 1], exact at 0."""
    return 2 * torch.asin((gap.clamp(0, 1) / 2).sqrt())


def bend_of(angle: torch.Tensor) -> torch.Tensor:
    """(sin θ − θ cos θ)/π; by its series where the difference would cancel."""
    square = angle * angle
    series = torch.full_like(angle, 1 / 518918400)
    for divisor in (3991680, 45360, 840, 30, 3):
        series = 1 / divisor - square * series
    series = angle * square * series
    direct = torch.sin(angle) - angle * torch.cos(angle)
    return torch.where(angle < 0.3, series, direct) / math.pi


def arc_cosine_maps(
    gap: torch.Tensor, negative: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """k0(c) and k1(c) from u = 1 − |c| and, where c may be below zero, the mask of c < 0; any shape."""
    angle = angle_of(gap)
    k0, bend = 1 - angle / math.pi, bend_of(angle)
    k1 = 1 - gap + bend
    if negative is None:
        return k0, k1
    return torch.where(negative, 1 - k0, k0), torch.where(negative, bend, k1)


def slope_and_bend_polynomials(slope_degree: int, bend_degree: int) -> tuple[list[float], list[float]]:
    r"""Coefficients, lowest first, of A and B on 0 ≤ u ≤ 1:

    k0 = 1 − √u A(u),  k1 = c + u √u B(u).  Both are smooth: their nearest singularity is at u = 2 (c = −1).
    Least squares of the errors of k0 and k1 themselves, at Chebyshev's nodes: within a seventh of the best
    possible largest error at the degrees of float32, 3.2e-8 of k0 and 7.8e-8 of k1.
    """
    slope = _least_squares(lambda u: angle_of(u) / (math.pi * u.sqrt()), slope_degree, lambda u: u.sqrt())
    bend = _least_squares(
        lambda u: bend_of(angle_of(u)) / (u * u.sqrt()), bend_degree, lambda u: u * u.sqrt()
    )
    return _in_powers(slope), _in_powers(bend)


def _least_squares(
    function: Callable[[torch.Tensor], torch.Tensor],
    degree: int,
    weight: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Chebyshev coefficients on [0, 1] of the polynomial with the least weighted errors at many nodes."""
    nodes = math.pi * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    u = (1 + torch.cos(nodes)) / 2
    weights = weight(u)
    columns = torch.cos(nodes[:, None] * torch.arange(degree + 1, dtype=torch.float64))
    solution: torch.Tensor = torch.linalg.lstsq(columns * weights[:, None], function(u) * weights).solution
    return solution


def chebyshev_coefficients(function: Callable[[torch.Tensor], torch.Tensor], degree: int) -> torch.Tensor:
    """Chebyshev coefficients on [0, 1] of the polynomial through ``function`` at the degree + 1 nodes."""
    count = degree + 1
    nodes = math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    values = function((1 + torch.cos(nodes)) / 2)
    cosines = torch.cos(torch.arange(count, dtype=torch.float64)[:, None] * nodes)
    coefficients = 2 / count * (cosines @ values)
    coefficients[0] /= 2
    return coefficients


def _in_powers(coefficients: torch.Tensor) -> list[float]:
    """Coefficients in powers of u of Σ c_n T_n(2u − 1)."""
    from numpy.polynomial import Chebyshev, Polynomial

    powers = Chebyshev(coefficients.numpy(), domain=[0, 1]).convert(
        kind=Polynomial, domain=[-1, 1], window=[-1, 1]
    )
    return [float(value) for value in powers.coef] + [0.0] * (len(coefficients) - len(powers.coef))
