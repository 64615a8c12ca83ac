"""Noise that the sites add together: what it hides, what is left when sites drop out, what never wraps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from federation.secure_aggregation.distributed_noise import (
    DistributedNoise,
    closeness,
    concentrated_epsilon,
    encode_private_update,
    reserve_noise,
    rounded_norm_bound,
)
from federation.secure_aggregation.quantisation import QuantisationPlan, decode_sum, encode_update
from instahide.discrete_gaussian import DiscreteGaussian
from instahide.errors import InvalidInputError
from instahide.privacy_curves import gaussian_epsilon
from instahide.randomness import Randomness

COUNT = {"num-examples": 100}
NOISE = DistributedNoise(noise_multiplier=1.5, fewest_honest_sites=3)


def plan(**changes: Any) -> QuantisationPlan:
    settings: dict[str, Any] = {
        "vector_length": 2000,
        "num_sites": 5,
        "coordinate_bound": 1.0,
        "max_examples": 100,
        "norm_bound": 2.0,
    }
    return QuantisationPlan(**(settings | changes))


def law(scale: float, reach: int) -> np.ndarray:
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * scale**2))
    return np.asarray(weights / weights.sum())


def renyi_of_a_sum(scale: float, num_sites: int, shift: int, order: float) -> float:
    """D_α of the sum of ``num_sites`` discrete Gaussians from itself moved by ``shift``, cell by cell."""
    one = law(scale, math.ceil(14 * scale))
    total = one
    for _ in range(num_sites - 1):
        total = np.convolve(total, one)
    moved, still = total[: len(total) - shift], total[shift:]
    kept = (moved > 1e-250) & (still > 1e-250)
    logs = order * np.log(still[kept]) + (1 - order) * np.log(moved[kept])
    return float(np.log(np.sum(np.exp(logs))) / (order - 1))


@pytest.mark.parametrize("order", [1.5, 2.0, 6.0])
@pytest.mark.parametrize(
    ("scale", "num_sites", "shift"), [(0.6, 2, 1), (0.6, 5, 1), (0.8, 3, 2), (2.0, 4, 3), (6.0, 2, 5)]
)
def test_the_divergence_claimed_covers_the_true_one(
    scale: float, num_sites: int, shift: int, order: float
) -> None:
    """One entry: α·(Δ²/2ms² + τ) against the convolution itself, down to noise as small as a level."""
    claimed = order * (shift**2 / (2 * num_sites * scale**2) + closeness(scale, num_sites))
    assert renyi_of_a_sum(scale, num_sites, shift, order) <= claimed * (1 + 1e-9)


def test_from_a_few_levels_on_the_sum_is_as_good_as_one_discrete_gaussian() -> None:
    assert closeness(0.6, 5) > 1e-3
    assert closeness(4.0, 100) < 1e-60
    true = renyi_of_a_sum(4.0, 3, 5, 2.0)
    assert true == pytest.approx(2.0 * 25 / (2 * 3 * 16), rel=1e-6)


def test_a_round_costs_half_the_inverse_square_of_the_multiplier() -> None:
    reserved = reserve_noise(plan(), NOISE)
    assert NOISE.rho(reserved) == pytest.approx(1 / (2 * 1.5**2), rel=1e-9)


@pytest.mark.parametrize("rounds", [1, 10])
def test_epsilon_is_close_above_that_of_the_continuous_gaussian(rounds: int) -> None:
    reserved = reserve_noise(plan(), noise := DistributedNoise(noise_multiplier=4.0, fewest_honest_sites=3))
    exact = gaussian_epsilon(1e-5, math.sqrt(rounds) / 4.0)
    assert exact < noise.epsilon(reserved, rounds, 1e-5) < 1.2 * exact


def test_the_conversion_from_zcdp_is_googles() -> None:
    from dp_accounting import ZCDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant([1 + 2 ** (k / 8) for k in range(-48, 97)])
    accountant.compose(ZCDpEvent(0.3))
    assert concentrated_epsilon(0.3, 1e-6) == pytest.approx(accountant.get_epsilon(1e-6), rel=1e-9)


def private_sum(reserved: QuantisationPlan, noise: DistributedNoise, update: np.ndarray, sites: int) -> Any:
    """The ring's sum of ``sites`` sites with the same update, as the server opens it."""
    encoded = [encode_private_update(reserved, noise, update, COUNT) for _ in range(sites)]
    vector, channels = encoded[0].vector.copy(), encoded[0].channels.copy()
    for one in encoded[1:]:
        vector += one.vector
        channels += one.channels
    return decode_sum(reserved, vector, channels, num_survivors=sites)


@pytest.mark.statistical
@pytest.mark.parametrize("sites", [3, 5])
def test_the_sum_carries_at_least_the_noise_that_was_accounted(sites: int) -> None:
    """2,000 entries: a variance off by 1/6 is five standard errors √(2/2000) = 0.032; false alarm 6e-7."""
    reserved = reserve_noise(plan(), NOISE)
    update = np.zeros(2000)
    mean = private_sum(reserved, NOISE, update, sites).mean
    sum_in_levels = mean * sites / reserved.step
    wanted = (NOISE.noise_multiplier * rounded_norm_bound(reserved)) ** 2
    assert sum_in_levels.var() == pytest.approx(wanted * sites / 3, rel=1 / 6)


@pytest.mark.statistical
def test_the_decoded_mean_is_the_mean_and_noise_of_the_size_announced() -> None:
    """Six standard errors in any of 2,000 entries: false alarm 4e-6."""
    reserved = reserve_noise(plan(), NOISE)
    rng = np.random.default_rng(0)
    update = rng.standard_normal(2000) / math.sqrt(2000)
    mean = private_sum(reserved, NOISE, update, 5).mean
    sd = NOISE.scale(reserved) * math.sqrt(5) * reserved.step / 5
    assert np.abs(mean - update).max() < 6 * sd
    assert np.std(mean - update) == pytest.approx(sd, rel=0.15)


def test_an_update_is_clipped_and_rounded_within_the_norm_that_is_accounted() -> None:
    reserved = replace(plan(ring_bits=16), noise_levels=0)
    for seed in range(5):
        update = np.random.default_rng(seed).standard_normal(2000)
        signed = encode_update(reserved, update, COUNT).vector.view("i2").astype(float)
        assert np.linalg.norm(signed) <= reserved.quantised_norm_bound
    assert rounded_norm_bound(reserved) < reserved.quantised_norm_bound


def test_no_draw_of_any_site_can_wrap_the_sum() -> None:
    for bits in (16, 32):
        reserved = reserve_noise(plan(ring_bits=bits, vector_length=50), NOISE)
        reach = DiscreteGaussian(NOISE.scale(reserved)).reach
        assert reach <= reserved.noise_levels
        assert reserved.num_sites * (reserved.levels + reach) < 2 ** (bits - 1)
        # and no level more is set aside than it takes
        with_less = replace(reserved, noise_levels=reserved.noise_levels - 1)
        assert DiscreteGaussian(NOISE.scale(with_less)).reach > with_less.noise_levels


def test_a_ring_too_small_for_the_noise_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="bits"):
        reserve_noise(plan(ring_bits=16), DistributedNoise(noise_multiplier=50.0, fewest_honest_sites=1))


def test_a_plan_without_room_or_without_a_norm_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="room"):
        encode_private_update(plan(), NOISE, np.zeros(2000), COUNT)
    with pytest.raises(InvalidInputError, match="norm"):
        reserve_noise(plan(norm_bound=0.0), NOISE)


@pytest.mark.parametrize("change", [{"noise_multiplier": 0.0}, {"fewest_honest_sites": 0}])
def test_what_is_no_noise_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        DistributedNoise(**({"noise_multiplier": 1.0, "fewest_honest_sites": 1} | change))


def test_two_sites_never_add_the_same_noise() -> None:
    reserved = reserve_noise(plan(), NOISE)
    first, second = (encode_private_update(reserved, NOISE, np.zeros(2000), COUNT).vector for _ in range(2))
    assert not np.array_equal(first, second)


def test_a_sites_streams_of_one_root_are_kept_apart() -> None:
    reserved, root = reserve_noise(plan(), NOISE), Randomness()
    first, second = (
        encode_private_update(reserved, NOISE, np.zeros(2000), COUNT, randomness=root).vector
        for _ in range(2)
    )
    assert not np.array_equal(first, second)
