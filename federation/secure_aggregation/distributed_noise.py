"""Differential privacy under secure aggregation: each site adds a share of the noise before it masks.

Kairouz, Liu, Steinke, *The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation*, ICML 2021. Nobody but the site itself is trusted with its noise; the server opens only a sum.

A site's update is clipped, weighted and rounded to a vector q of whole levels
(:mod:`.quantisation`), again and again until ‖q‖ ≤ Δ (conditional rounding, their section 4.1), with

    Δ² = min( C² + d/4 + √(2 ln 1/β)·(C + √d/2),  (C + √d)² )          C = norm-bound / step,  β = e^(−1/2)

and sends q + X, X discrete Gaussian of scale s in every one of the d entries
(:mod:`instahide.discrete_gaussian`). Let m be the fewest honest sites whose noise is certainly in a sum that
is opened, whatever the server does with those that collude (``AggregationParameters.fewest_honest_sites``;
colluding sites know their own noise). With

    s = z·Δ / √m                                     z ``noise_multiplier``
    τ = 10·Σ_{k=1}^{m−1} e^(−2π²s²·k/(k+1))
    ρ = Δ² / (2·m·s²) + τ·d                          a round is ρ-zCDP    (their proposition 14)

More survivors only add noise. T rounds are T·ρ-zCDP; epsilon by the conversion of Canonne, Kamath,
Steinke 2020, over all orders. The sampler's error counts as in :mod:`instahide.integer_noise`.

**Unit**: a whole site. Its update may be anything or zero ("zero-out"): who took part, and the counts and
metrics in the channels, are exact and *not* covered. The guarantee holds against the server and everybody
who sees the model, with up to the assumed number of sites colluding, but each site must add its noise.

**No wrap-around.** Noise never exceeds its reach of 12.5 s; ``reserve_noise`` sets noise-levels to it, so the
budget n·(L + noise-levels) < 2^(b−1) holds for every draw, not only with high probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from instahide.discrete_gaussian import LARGEST_SCALE, SMALLEST_SCALE, DiscreteGaussian
from instahide.errors import InvalidInputError
from instahide.integer_noise import MOST_EPSILON, ideal_delta
from instahide.privacy_curves import check_delta, rdp_to_epsilon
from instahide.randomness import Randomness

from .quantisation import CHUNK, EncodedUpdate, QuantisationPlan, encode_update

_LOG_INVERSE_BETA: Final = 0.5
_ORDERS: Final = tuple(1 + 2 ** (k / 8) for k in range(-48, 97))
_MOST_ATTEMPTS: Final = 1000


@dataclass(frozen=True, kw_only=True)
class DistributedNoise:
    """How much noise the sites add together.

    Args:
        noise_multiplier: z; the sum of m shares has z times the largest norm of one site's vector.
        fewest_honest_sites: m, sites whose noise is in every opened sum and unknown to the server.

    Raises:
        InvalidInputError: a value outside its range.
    """

    noise_multiplier: float
    fewest_honest_sites: int

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier < math.inf or self.fewest_honest_sites < 1:
            raise InvalidInputError(
                f"{self} is no noise", hint="use a multiplier above 0 and one site or more"
            )

    def scale(self, plan: QuantisationPlan) -> float:
        """s, in levels."""
        return self.noise_multiplier * rounded_norm_bound(plan) / math.sqrt(self.fewest_honest_sites)

    def rho(self, plan: QuantisationPlan) -> float:
        """ρ of one round."""
        m, s = self.fewest_honest_sites, self.scale(plan)
        bound = rounded_norm_bound(plan)
        return bound**2 / (2 * m * s**2) + plan.vector_length * closeness(s, m)

    def epsilon(self, plan: QuantisationPlan, num_rounds: int, target_delta: float) -> float:
        """ε of one site over ``num_rounds`` rounds; infinite beyond 30."""
        check_delta(target_delta)
        draws = DiscreteGaussian(self.scale(plan)).table_draws * plan.vector_length * num_rounds
        delta, extra = ideal_delta(draws * plan.num_sites, target_delta)
        if delta <= 0:
            return math.inf
        epsilon = concentrated_epsilon(num_rounds * self.rho(plan), delta) + extra
        return epsilon if epsilon <= MOST_EPSILON else math.inf


def rounded_norm_bound(plan: QuantisationPlan) -> float:
    """Δ: the L2 norm, in levels, beyond which a rounding is drawn again.

    Raises:
        InvalidInputError: the plan has no norm bound, without which noise protects nothing.
    """
    if not plan.norm_bound:
        raise InvalidInputError(
            "noise needs updates of bounded norm", hint="give the plan a norm bound above 0"
        )
    root = math.sqrt(plan.vector_length)
    clear = plan.quantised_norm_bound - root
    squared = clear**2 + plan.vector_length / 4 + math.sqrt(2 * _LOG_INVERSE_BETA) * (clear + root / 2)
    return min(math.sqrt(squared), clear + root)


def closeness(scale: float, num_sites: int) -> float:
    """τ: how far a sum of ``num_sites`` discrete Gaussians may be from a single one, per entry."""
    return 10 * math.fsum(math.exp(-2 * (math.pi * scale) ** 2 * k / (k + 1)) for k in range(1, num_sites))


def concentrated_epsilon(rho: float, delta: float) -> float:
    """The smallest ε ≥ 0 at ``delta`` that the conversion gives for ρ-zCDP."""
    check_delta(delta)
    return max(0.0, min(rdp_to_epsilon(order * rho, order, delta) for order in _ORDERS))


def reserve_noise(plan: QuantisationPlan, noise: DistributedNoise) -> QuantisationPlan:
    """``plan`` with the fewest noise-levels that hold every draw of ``noise``.

    Raises:
        InvalidInputError: the ring is too small for it, or the noise too small to be counted.
    """
    low, high = -1, (1 << (plan.ring_bits - 1)) // plan.num_sites
    while high - low > 1:  # the more room for noise, the coarser the steps and the smaller the noise in them
        middle = (low + high) // 2
        low, high = (low, middle) if _holds(plan, noise, middle) else (middle, high)
    reserved = replace(plan, noise_levels=high)  # raises where too few levels are left
    if noise.scale(reserved) < SMALLEST_SCALE:
        raise InvalidInputError(
            f"noise of {noise.scale(reserved):.2g} levels is too coarse", hint="raise ring-bits or the noise"
        )
    return reserved


def encode_private_update(
    plan: QuantisationPlan,
    noise: DistributedNoise,
    update: NDArray[np.floating[Any]],
    values: Mapping[str, float],
    *,
    randomness: Randomness | None = None,
) -> EncodedUpdate:
    """As :func:`.quantisation.encode_update`, with this site's share of the noise in the vector.

    Raises:
        InvalidInputError: as there; or the plan has no room for the noise.
    """
    distribution = DiscreteGaussian(noise.scale(plan))
    if distribution.reach > plan.noise_levels:
        raise InvalidInputError("the plan has no room for the noise", hint="make the plan with reserve_noise")
    randomness = randomness or Randomness()
    encoded = _encode_within(plan, update, values, randomness)
    stream = randomness.stream("noise")
    for start in range(0, plan.vector_length, CHUNK):
        part = encoded.vector[start : start + CHUNK]
        part += distribution.draw(stream, part.size).astype(part.dtype)  # modulo 2^b, as the ring wants
    return encoded


def _encode_within(
    plan: QuantisationPlan, update: NDArray[Any], values: Mapping[str, float], randomness: Randomness
) -> EncodedUpdate:
    """Rounded until the norm is within Δ: at least two tries in five succeed (1 − β)."""
    bound = rounded_norm_bound(plan)
    for _ in range(_MOST_ATTEMPTS):
        encoded = encode_update(plan, update, values, randomness=randomness)
        signed = encoded.vector.view(f"i{plan.ring_bits // 8}")
        squared = 0.0
        for start in range(0, plan.vector_length, CHUNK):
            part = signed[start : start + CHUNK].astype(np.float64)
            squared += float(part @ part)
        if math.sqrt(squared) * (1 + 1e-12) <= bound:
            return encoded
    raise AssertionError("no rounding stays within the norm bound")


def _holds(plan: QuantisationPlan, noise: DistributedNoise, noise_levels: int) -> bool:
    try:
        scale = noise.scale(replace(plan, noise_levels=noise_levels))
    except InvalidInputError:
        return True  # too few levels are left: the caller says so
    if scale < SMALLEST_SCALE:
        return True
    return scale <= LARGEST_SCALE and DiscreteGaussian(scale).reach <= noise_levels
