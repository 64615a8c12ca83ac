"""Epsilon and delta of composed mechanisms: closed forms, and dp-accounting where there are none.

**Gaussian.** Releases with sensitivities Δ_i (L2) under noise of standard deviation s_i, chosen
adaptively, are together exactly as revealing as one Gaussian release with

    μ² = Σ_i (Δ_i / s_i)²                                       Dong, Roth, Su 2022, corollary 3.3
    δ(ε) = Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ)                     Balle and Wang, ICML 2018, theorem 8

No bound is lost: both are equalities. g members of one group count as μ → g·μ.

**Laplace.** One coordinate moved by Δ under Laplace(b) is Δ/b-DP; n of them compose to n·Δ/b with δ = 0. For
δ > 0 the optimal composition is far smaller and is computed from privacy loss distributions
(Koskela et al. 2020; Doroshenko et al. 2022) and Rényi moments, with Google's ``dp-accounting``.

**Poisson-sampled Gaussian** (DP-SGD: Abadi et al. 2016): no closed form. Privacy loss distributions of
``dp-accounting`` (an upper bound by construction); Opacus' PRV and RDP accountants beside it as a check.

``dp-accounting`` and ``opacus`` come with the extra ``dp`` and are imported where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

from .errors import InvalidInputError

_RDP_ORDERS = (
    1.01,
    1.05,
    1.1,
    1.2,
    1.35,
    1.5,
    1.75,
    2,
    2.5,
    3,
    4,
    5,
    6,
    8,
    10,
    14,
    20,
    28,
    40,
    64,
    128,
    256,
    1024,
)
_WHOLE_RDP_ORDERS = (*range(2, 33), 40, 48, 64, 96, 128, 256, 512)
"""Sampled Gaussian moments have a closed form at whole orders only; the series elsewhere may not converge."""
_BISECTIONS = 200
_WIDEST = 100.0
"""Epsilons beyond it are bounded by Rényi moments."""


def require(module: str) -> Any:
    """``dp_accounting`` or ``opacus``, or an error that says how to get them."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InvalidInputError(
            f"this needs {module.partition('.')[0].replace('_', '-')}: {error}",
            hint="pip install 'instahide-fl[dp]'",
        ) from error


def gaussian_delta(epsilon: float, mu: float) -> float:
    """δ(ε) of a Gaussian release with sensitivity over standard deviation ``mu``."""
    if mu == 0:
        return 0.0
    from scipy.special import log_ndtr

    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return max(0.0, -math.exp(first) * math.expm1(second - first))


def gaussian_epsilon(delta: float, mu: float) -> float:
    """The smallest ε ≥ 0 with δ(ε) ≤ ``delta``."""
    check_delta(delta)
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    return bisect(lambda epsilon: gaussian_delta(epsilon, mu) <= delta)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest μ with δ(``epsilon``) ≤ ``delta``: the noise multiplier is 1/μ."""
    check_delta(delta)
    return 1 / bisect(lambda multiplier: gaussian_delta(epsilon, 1 / multiplier) <= delta)


def laplace_epsilons(parts: list[tuple[float, int]], delta: float) -> dict[str, float]:
    """Upper bounds on ε by method: n coordinates moved by Δ under Laplace(b), for each (Δ/b, n) in ``parts``.

    ``"composition"`` is Σ n·Δ/b and holds at δ = 0; ``"pld"`` and ``"rdp"`` at ``delta``.
    """
    bounds = {"composition": sum(loss * count for loss, count in parts)}
    if delta > 0:
        bounds["rdp"] = _laplace_rdp(parts, delta)
        bounds["pld"] = _laplace_pld(parts, delta)
    return bounds


def _laplace_rdp(parts: list[tuple[float, int]], delta: float) -> float:
    accounting = require("dp_accounting")
    accountant = accounting.rdp.RdpAccountant(list(_RDP_ORDERS))
    for loss, count in parts:
        accountant.compose(accounting.LaplaceDpEvent(1 / loss), count)
    return float(accountant.get_epsilon(delta))


def _laplace_pld(parts: list[tuple[float, int]], delta: float) -> float:
    pld = require("dp_accounting.pld.privacy_loss_distribution")
    # The loss of the whole is spread over about this range; ten thousand points of it are fine enough.
    spread = sum(count * loss**2 / 2 for loss, count in parts) + math.sqrt(sum(n * a**2 for a, n in parts))
    interval = min(1e-3, spread / 1e4)
    total = None
    for loss, count in parts:
        one = pld.from_laplace_mechanism(1 / loss, value_discretization_interval=interval)
        several = one.self_compose(count) if count > 1 else one
        total = several if total is None else total.compose(several)
    assert total is not None
    return float(total.get_epsilon_for_delta(delta))


def sampled_gaussian_epsilon(
    noise_multiplier: float, sample_rate: float, num_steps: int, delta: float, *, method: str = "pld"
) -> float:
    """ε of ``num_steps`` Poisson-sampled Gaussian releases under add-or-remove-one.

    Args:
        method: ``"pld"`` (dp-accounting, what this package claims), ``"rdp"`` (dp-accounting) or
            ``"prv"`` (Opacus).
    """
    return composed_epsilon(((noise_multiplier, sample_rate, num_steps),), delta, method=method)


def composed_epsilon(
    parts: Sequence[tuple[float, float, int]], delta: float, *, method: str = "pld"
) -> float:
    """ε of Poisson-sampled Gaussian releases of several kinds, one after another.

    Args:
        parts: (noise_multiplier, sample_rate, num_steps) of each kind; their order does not matter.
        method: as for :func:`sampled_gaussian_epsilon`. Beyond 100, ``"pld"`` gives a Rényi bound: loss
            distributions of such a width take a minute, and nobody is protected there.
    """
    check_delta(delta)
    if method not in ("pld", "rdp", "prv"):
        raise InvalidInputError(f"no accounting method {method!r}", hint="use pld, rdp or prv")
    merged = _merged(parts)
    if not merged:
        return 0.0
    if method == "prv":
        accountant = require("opacus.accountants").PRVAccountant()
        accountant.history = list(merged)
        return float(accountant.get_epsilon(delta))
    if method == "pld":
        if all(q == 1.0 for _, q, _ in merged):
            return gaussian_epsilon(delta, math.sqrt(sum(n / z**2 for z, _, n in merged)))
        order = 4
        rough = rdp_to_epsilon(sum(n * sampled_gaussian_rdp(z, q, order) for z, q, n in merged), order, delta)
        return rough if rough > _WIDEST else float(_sampled_gaussian_loss(merged).get_epsilon(delta))
    accountant = require("dp_accounting").rdp.RdpAccountant(list(_WHOLE_RDP_ORDERS))
    return float(_composed(accountant, merged).get_epsilon(delta))


def sampled_gaussian_rdp(noise_multiplier: float, sample_rate: float, order: int) -> float:
    """Rényi divergence of whole ``order`` α ≥ 2 of one Poisson-sampled Gaussian release of sensitivity 1.

    (α−1)·D = log Σ_k C(α,k)·(1−q)^(α−k)·q^k·e^{k(k−1)/2z²}     Mironov, Talwar, Zhang 2019, section 3.3
    """
    if order < 2:
        raise InvalidInputError(f"order is {order}", hint="use a whole order from 2")
    if sample_rate == 1.0:
        return order / (2 * noise_multiplier**2)
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + (order - k) * math.log1p(-sample_rate)
        + k * math.log(sample_rate)
        + k * (k - 1) / (2 * noise_multiplier**2)
        for k in range(order + 1)
    ]
    largest = max(terms)
    return (largest + math.log(math.fsum(math.exp(term - largest) for term in terms))) / (order - 1)


def rdp_to_epsilon(divergence: float, order: float, delta: float) -> float:
    """ε at ``delta`` of a Rényi divergence of one order (Canonne, Kamath, Steinke 2020, proposition 12)."""
    return divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def _merged(parts: Sequence[tuple[float, float, int]]) -> tuple[tuple[float, float, int], ...]:
    """Equal kinds counted together: composing n at once takes about as long as one."""
    steps: dict[tuple[float, float], int] = {}
    for noise_multiplier, sample_rate, num_steps in parts:
        key = (noise_multiplier, sample_rate)
        steps[key] = steps.get(key, 0) + num_steps
    return tuple((z, q, count) for (z, q), count in sorted(steps.items()) if count)


def _composed(accountant: Any, parts: tuple[tuple[float, float, int], ...]) -> Any:
    accounting = require("dp_accounting")
    for noise_multiplier, sample_rate, num_steps in parts:
        event = accounting.PoissonSampledDpEvent(sample_rate, accounting.GaussianDpEvent(noise_multiplier))
        accountant.compose(event, num_steps)
    return accountant


@lru_cache(maxsize=16)
def _sampled_gaussian_loss(parts: tuple[tuple[float, float, int], ...]) -> Any:
    """The composed privacy loss, which answers for every δ; composing it is what takes time."""
    return _composed(require("dp_accounting.pld").PLDAccountant(), parts)


def check_delta(delta: float) -> None:
    """Refuse a delta that is not a probability between 0 and 1."""
    if not 0 < delta < 1:
        raise InvalidInputError(f"target_delta is {delta!r}", hint="use well below one over the people: 1e-5")


def bisect(holds: Callable[[float], bool], *, relative: float = 1e-9, low: float = 0.0) -> float:
    """The smallest number above ``low`` for which ``holds``, which stays true from there on."""
    high = 1.0
    while not holds(high):
        high *= 2
        if high > 1e12:
            return math.inf
    for _ in range(_BISECTIONS):
        if high - low <= relative * high:
            break
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
