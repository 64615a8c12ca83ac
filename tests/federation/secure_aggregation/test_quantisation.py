"""From floats to the ring and back: unbiased, within its budget, and loud when it does not fit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.secure_aggregation import (
    MeanChannel,
    QuantisationPlan,
    check_test_vector,
    decode_sum,
    encode_update,
)
from federation.secure_aggregation.quantisation import CHUNK, EncodedUpdate, _encode
from instahide.errors import IntegrityError, InvalidInputError

LOSS = MeanChannel(name="train-loss", weight="num-examples", largest=100.0)
ACCURACY = MeanChannel(name="accuracy", weight="evaluate-num-examples")
SECONDS = MeanChannel(name="seconds", largest=1e5)


def plan_of(**changes: Any) -> QuantisationPlan:
    values: dict[str, Any] = {
        "vector_length": 50,
        "num_sites": 5,
        "coordinate_bound": 1.0,
        "max_examples": 1000,
    }
    return QuantisationPlan(**(values | changes))


def summed(encoded: list[EncodedUpdate]) -> tuple[np.ndarray, np.ndarray]:
    """What secure aggregation hands over: sums in the two rings."""
    with np.errstate(over="ignore"):
        vector = sum((each.vector for each in encoded[1:]), encoded[0].vector)
        channels = sum((each.channels for each in encoded[1:]), encoded[0].channels)
    return vector, channels


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_the_decoded_mean_is_the_weighted_mean_of_the_clipped_updates(data: st.DataObject) -> None:
    """Every rounding is off by less than a step, so the mean by less than M step m / Σ n_i."""
    ring_bits = data.draw(st.sampled_from([16, 32, 64]))
    survivors = data.draw(st.integers(1, 5))
    plan = plan_of(
        ring_bits=ring_bits,
        coordinate_bound=data.draw(st.floats(1e-4, 1e3)),
        norm_bound=data.draw(st.sampled_from([0.0, 0.5, 20.0])),
    )
    counts = data.draw(st.lists(st.integers(1, 1000), min_size=survivors, max_size=survivors))
    rng = np.random.default_rng()
    updates = [rng.normal(size=50) * plan.coordinate_bound * 2 for _ in counts]
    encoded = [
        encode_update(plan, update, {"num-examples": count})
        for update, count in zip(updates, counts, strict=True)
    ]
    decoded = decode_sum(plan, *summed(encoded), num_survivors=survivors)
    expected = np.zeros(50)
    for update, count in zip(updates, counts, strict=True):
        norm = float(np.linalg.norm(update))
        scaled = update * min(1.0, plan.norm_bound / norm) if plan.norm_bound else update
        expected += count * np.clip(scaled, -plan.coordinate_bound, plan.coordinate_bound)
    expected /= sum(counts)
    floats = 1e-12 * plan.coordinate_bound  # a 64-bit ring is finer than float64
    bound = plan.max_examples * plan.step * survivors / sum(counts) + floats
    assert np.abs(decoded.mean - expected).max() <= bound
    assert decoded.counts == {"num-examples": sum(counts)}


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
@pytest.mark.parametrize("num_sites", [2, 3, 5, 255])
@pytest.mark.parametrize("noise_levels", [0, 5])
def test_the_largest_sum_of_all_sites_does_not_wrap(
    ring_bits: int, num_sites: int, noise_levels: int
) -> None:
    plan = plan_of(vector_length=4, ring_bits=ring_bits, num_sites=num_sites, noise_levels=noise_levels)
    assert num_sites * (plan.levels + noise_levels) <= 2 ** (ring_bits - 1) - 1
    for sign in (-1.0, 1.0):
        update = np.full(4, sign * 1e30)
        encoded = encode_update(plan, update, {"num-examples": 1000})
        decoded = decode_sum(plan, *summed([encoded] * num_sites), num_survivors=num_sites)
        assert np.allclose(decoded.mean, sign, rtol=1e-12)
        assert encoded.clipped_entries == 4


def test_the_largest_draw_cannot_lift_an_entry_out_of_the_budget() -> None:
    """L + u rounds up to L + 1 in float64 when u is within 2^-25 of 1: too rare for a test by chance."""
    for bound in (1.0, 0.3, 7.7, 1e-3):
        plan = plan_of(coordinate_bound=bound, vector_length=2)
        edge = np.array([bound, -bound])
        for draw in (0.5 * 2.0**-32, 1 - 0.5 * 2.0**-32):
            encoded = _encode(plan, edge, {"num-examples": 1000}, lambda size, draw=draw: np.full(size, draw))
            assert np.abs(encoded.vector.view(np.int32)).max() <= plan.levels


def test_what_would_overflow_is_refused_with_the_bits_it_needs() -> None:
    with pytest.raises(InvalidInputError, match="need 23 bits, the ring has 16") as caught:
        plan_of(ring_bits=16, precision=1e-6, coordinate_bound=0.5)
    assert "ring-bits" in caught.value.hint
    plan_of(ring_bits=32, precision=1e-6, coordinate_bound=0.5)
    with pytest.raises(InvalidInputError, match="the ring has 16"):
        plan_of(ring_bits=16, num_sites=255, noise_levels=100)
    with pytest.raises(InvalidInputError, match="the ring has 16"):
        plan_of(ring_bits=16, noise_levels=7000)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 255), st.floats(1e-6, 1e3), st.floats(1e-9, 1.0), st.sampled_from([16, 32, 64]))
def test_a_plan_is_accepted_exactly_when_it_keeps_the_precision_asked_for(
    num_sites: int, bound: float, precision: float, ring_bits: int
) -> None:
    wanted = math.ceil(bound / precision)
    fits = num_sites * wanted <= 2 ** (ring_bits - 1) - 1 and wanted <= 2**40
    try:
        plan = plan_of(num_sites=num_sites, coordinate_bound=bound, precision=precision, ring_bits=ring_bits)
    except InvalidInputError:
        assert not fits
    else:
        assert fits
        assert plan.step <= precision


@pytest.mark.statistical
def test_rounding_is_unbiased_in_every_place() -> None:
    """x = (k + 0.3) steps: rounded up with probability 0.3. 2^18 entries, deviation of the share of

    ups sqrt(0.21 / 2^18) = 8.95e-4; six of them, false alarm 2e-9. The same for a negative x.
    """
    plan = plan_of(vector_length=1 << 18, max_examples=1)
    for whole in (-17, -1, 0, 1000):
        update = np.full(1 << 18, (whole + 0.3) * plan.step)
        signed = encode_update(plan, update, {"num-examples": 1}).vector.view(np.int32)
        assert set(np.unique(signed)) == {whole, whole + 1}
        assert abs(float((signed == whole + 1).mean()) - 0.3) < 6 * 8.95e-4


@pytest.mark.statistical
def test_the_error_of_the_mean_is_within_the_stated_figure() -> None:
    """Three sites, entries anywhere between two levels: one rounding has variance f(1 - f), 1/6 on average.

    The error's deviation is then sqrt(4/6) of ``rounding_error``; over 2^17 entries it is known to 0.2 %
    (1/sqrt(2^18)), so 3 % is more than ten deviations.
    """
    plan = plan_of(vector_length=1 << 17, ring_bits=16)
    rng = np.random.default_rng()
    updates, counts = [rng.uniform(-0.5, 0.5, 1 << 17) for _ in range(3)], [100, 500, 1000]
    encoded = [
        encode_update(plan, update, {"num-examples": count})
        for update, count in zip(updates, counts, strict=True)
    ]
    decoded = decode_sum(plan, *summed(encoded), num_survivors=3)
    exact = sum(update * count for update, count in zip(updates, counts, strict=True)) / 1600
    deviation = float((decoded.mean - exact).std())
    assert deviation == pytest.approx(plan.rounding_error(1600, 3) * math.sqrt(4 / 6), rel=0.03)


def test_rounding_draws_new_secrets_each_time() -> None:
    plan = plan_of()
    update = np.full(50, 0.3 * plan.step)
    drawn = {encode_update(plan, update, {"num-examples": 1000}).vector.tobytes() for _ in range(10)}
    assert len(drawn) == 10


def test_figures_of_the_protocol_page() -> None:
    fine = plan_of(max_examples=10_000, ring_bits=32)
    assert fine.levels == 429_496_729
    assert fine.rounding_error(5 * 1000, 5) == pytest.approx(5.2e-9, rel=0.01)
    coarse = plan_of(max_examples=10_000, ring_bits=16)
    assert coarse.levels == 6553
    assert coarse.rounding_error(5 * 1000, 5) == pytest.approx(3.4e-4, rel=0.01)


def test_updates_are_scaled_to_the_norm_and_cut_to_the_range() -> None:
    plan = plan_of(vector_length=3, norm_bound=1.0, coordinate_bound=0.7, max_examples=1)
    encoded = encode_update(plan, np.array([3.0, 4.0, 0.0]), {"num-examples": 1})
    assert encoded.norm == 5.0
    assert encoded.clipped_entries == 1
    decoded = decode_sum(plan, encoded.vector, encoded.channels, num_survivors=1)
    assert np.allclose(decoded.mean, [0.6, 0.7, 0.0], atol=2 * plan.step)
    level_norm = float(np.linalg.norm(encoded.vector.view(np.int32).astype(float)))
    assert level_norm <= plan.quantised_norm_bound
    inside = encode_update(plan, np.array([0.1, 0.1, 0.1]), {"num-examples": 1})
    assert inside.clipped_entries == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, CHUNK + 3])
def test_an_update_that_is_not_finite_is_refused(bad: float, place: int) -> None:
    plan = plan_of(vector_length=CHUNK + 4)
    update = np.zeros(CHUNK + 4, dtype=np.float32)
    update[place] = bad
    with pytest.raises(InvalidInputError, match="not finite"):
        encode_update(plan, update, {"num-examples": 1})


def test_updates_and_sums_of_another_shape_are_refused() -> None:
    plan = plan_of()
    for update in (np.zeros(49), np.zeros((50, 1)), np.zeros(50, np.int64)):
        with pytest.raises(InvalidInputError, match="the update is"):
            encode_update(plan, update, {"num-examples": 1})
    for vector in (np.zeros(49, np.uint32), np.zeros(50, np.uint16)):
        with pytest.raises(InvalidInputError, match="does not fit the plan"):
            decode_sum(plan, vector, np.array([1, 1], np.uint64), num_survivors=1)


def test_counts_are_exact_and_metrics_are_weighted_means() -> None:
    plan = plan_of(
        counts=("num-examples", "evaluate-num-examples"), means=(LOSS, ACCURACY, SECONDS), max_examples=10**6
    )
    rows = [(100, 10, 2.5, 0.5, 3.0), (999_999, 0, 0.125, 0.0, 5.0), (7, 90, 99.0, 1.0, 10.0)]
    names = ("num-examples", "evaluate-num-examples", "train-loss", "accuracy", "seconds")
    encoded = [encode_update(plan, np.zeros(50), dict(zip(names, row, strict=True))) for row in rows]
    decoded = decode_sum(plan, *summed(encoded), num_survivors=3)
    assert decoded.counts == {"num-examples": 1_000_106, "evaluate-num-examples": 100}
    loss = (100 * 2.5 + 999_999 * 0.125 + 7 * 99.0) / 1_000_106
    assert decoded.means == pytest.approx({"train-loss": loss, "accuracy": 0.95, "seconds": 6.0}, abs=1e-6)
    assert plan.num_channels == len(encoded[0].channels)


def test_a_metric_nobody_weighs_has_no_mean() -> None:
    plan = plan_of(counts=("num-examples", "evaluate-num-examples"), means=(ACCURACY,))
    encoded = encode_update(plan, np.zeros(50), {"num-examples": 5, "evaluate-num-examples": 0})
    assert decode_sum(plan, encoded.vector, encoded.channels, num_survivors=1).means == {}


def test_a_metric_above_its_largest_is_cut_and_the_site_is_told() -> None:
    plan = plan_of(means=(LOSS,))
    encoded = encode_update(plan, np.zeros(50), {"num-examples": 5, "train-loss": 1e9})
    assert encoded.cut_metrics == ("train-loss",)
    assert decode_sum(plan, encoded.vector, encoded.channels, num_survivors=1).means == {"train-loss": 100.0}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"num-examples": 0.5, "train-loss": 1.0},
        {"num-examples": True, "train-loss": 1.0},
        {"num-examples": -1, "train-loss": 1.0},
        {"num-examples": 1001, "train-loss": 1.0},
        {"num-examples": 1},
        {"num-examples": 1, "train-loss": -1.0},
        {"num-examples": 1, "train-loss": math.nan},
        {"num-examples": 1, "train-loss": 1.0, "other": 1.0},
    ],
)
def test_values_that_are_missing_unknown_or_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError):
        encode_update(plan_of(means=(LOSS,)), np.zeros(50), values)


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": ()},
        {"counts": ("sites",)},
        {"counts": ("a", "a")},
        {"means": (replace(LOSS, weight="unknown"),)},
        {"means": (replace(LOSS, largest=math.inf),)},
        {"means": (replace(LOSS, largest=1e9),), "max_examples": 10**9},
        {"coordinate_bound": 0.0},
        {"coordinate_bound": math.inf},
        {"norm_bound": -1.0},
        {"precision": math.nan},
        {"max_examples": 0},
        {"ring_bits": 8},
        {"num_sites": 0},
    ],
)
def test_plans_that_make_no_sense_or_could_overflow_a_channel_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        plan_of(**changes)


def test_a_sum_whose_masks_did_not_cancel_is_not_decoded() -> None:
    plan = plan_of()
    encoded = encode_update(plan, np.zeros(50), {"num-examples": 5})
    with pytest.raises(IntegrityError, match="did not cancel"):
        decode_sum(plan, encoded.vector, encoded.channels, num_survivors=2)
    noise = encoded.channels + np.uint64(12345678901234567890)
    with pytest.raises(IntegrityError, match="did not cancel"):
        decode_sum(plan, encoded.vector, noise, num_survivors=1)


def test_a_sum_without_images_has_no_mean() -> None:
    plan = plan_of()
    encoded = encode_update(plan, np.zeros(50), {"num-examples": 0})
    with pytest.raises(InvalidInputError, match="no images together"):
        decode_sum(plan, encoded.vector, encoded.channels, num_survivors=1)


def test_the_test_vector_shows_every_difference_between_two_plans() -> None:
    plan = plan_of(means=(LOSS,))
    changes: list[dict[str, Any]] = [
        {"num_sites": 6},
        {"coordinate_bound": 1.5},
        {"max_examples": 999},
        {"norm_bound": 3.0},
        {"ring_bits": 64},
        {"precision": 1e-3},
        {"noise_levels": 1},
        {"vector_length": 51},
        {"means": ()},
        {"means": (replace(LOSS, largest=99.0),)},
        {"counts": ("num-examples", "evaluate-num-examples")},
    ]
    digest = check_test_vector(plan)
    assert check_test_vector(plan, digest) == digest
    assert len({digest, *(check_test_vector(replace(plan, **each)) for each in changes)}) == 1 + len(changes)
    for each in changes:
        with pytest.raises(IntegrityError, match="do not encode the test vector alike"):
            check_test_vector(replace(plan, **each), digest)


def test_the_test_vector_also_notices_a_release_that_encodes_differently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Same settings, other arithmetic: a step that is off by one level in the last place."""
    plan = plan_of()
    digest = check_test_vector(plan)
    monkeypatch.setattr(
        QuantisationPlan, "step", property(lambda self: self.coordinate_bound / (self.levels - 9))
    )
    with pytest.raises(IntegrityError):
        check_test_vector(plan, digest)


def test_long_vectors_with_few_and_many_sites_pass_their_own_test_vector() -> None:
    for num_sites in (1, 2, 255):
        for ring_bits in (16, 32, 64):
            check_test_vector(plan_of(vector_length=10**7, num_sites=num_sites, ring_bits=ring_bits))
