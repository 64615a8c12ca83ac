"""The rules against brute force and against Flower's own strategies, on the same updates."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedTrimmedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from update_examples import flowers, ours, updates, weights

from federation.config import RunConfig
from federation.coordinator import aggregation
from federation.coordinator.strategies import build_aggregator
from federation.coordinator.validation import Update
from instahide.errors import FederationError, InvalidInputError


def assert_close(first, second, tolerance):
    assert set(first) == set(second)
    for name in first:
        assert first[name].shape == second[name].shape
        assert np.allclose(first[name], second[name], atol=tolerance, rtol=tolerance), name


# Flower sums in float32: a few roundings of 2^-24 relative to values below 5, hence 2e-6.


def test_fedavg_equals_flowers():
    for seed in range(5):
        given_updates = updates(6, seed)
        assert_close(ours("fedavg", weights(99), given_updates), flowers(FedAvg(), given_updates), 2e-6)


def test_fedprox_is_fedavg_at_the_server():
    given_updates = updates(4)
    first = ours("fedprox", weights(99), given_updates, proximal_mu=0.1)
    assert_close(first, ours("fedavg", weights(99), given_updates), 0.0)


def test_median_equals_flowers_and_the_statistics_module():
    for count in (1, 2, 3, 6):
        given_updates = updates(count)
        result = ours("median", weights(99), given_updates)
        assert_close(result, flowers(FedMedian(), given_updates), 2e-6)
        third = statistics.median(float(update.arrays["bias"][2]) for update in given_updates)
        assert float(result["bias"][2]) == pytest.approx(third, rel=1e-6)


def test_trimmed_mean_equals_flowers_where_flower_trims_at_all():
    given_updates = updates(10)
    result = ours("trimmed-mean", weights(99), given_updates, trim_fraction=0.2, minimum_sites=3)
    assert_close(result, flowers(FedTrimmedAvg(beta=0.2), given_updates), 2e-6)


def test_the_robust_rules_work_on_arrays_larger_than_a_block(monkeypatch):
    whole = {
        rule: ours(rule, weights(99), updates(5), minimum_sites=3) for rule in ("median", "trimmed-mean")
    }
    monkeypatch.setattr(aggregation, "COLUMNS_AT_ONCE", 7)
    for rule, expected in whole.items():
        assert_close(ours(rule, weights(99), updates(5), minimum_sites=3), expected, 0.0)


def test_trimmed_mean_over_three_sites_drops_one_at_either_end():
    given_updates = updates(3)
    result = ours("trimmed-mean", weights(99), given_updates, trim_fraction=0.2, minimum_sites=3)
    middle = sorted(float(update.arrays["scale"]) for update in given_updates)[1]
    assert float(result["scale"]) == pytest.approx(middle, rel=1e-6)


def test_trimmed_mean_that_would_drop_everybody_fails():
    with pytest.raises(FederationError, match="drop them all"):
        ours("trimmed-mean", weights(99), updates(2), minimum_sites=3)


def test_fedadam_equals_flowers_over_several_rounds():
    config = RunConfig(strategy="fedadam")
    rule = build_aggregator(config)
    theirs = FedAdam(eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3)
    current = weights(99)
    for server_round in range(1, 6):
        given_updates = updates(3, server_round)
        theirs.current_arrays = dict(current)
        expected = flowers(theirs, given_updates, server_round)
        current = rule.aggregate(server_round, current, given_updates)
        assert_close(current, expected, 1e-5)


def test_fedadam_carries_on_from_its_saved_state_bit_for_bit():
    whole, first, second = (build_aggregator(RunConfig(strategy="fedadam")) for _ in range(3))
    one = whole.aggregate(1, weights(99), updates(3, 1))
    assert one["bias"].tobytes() == first.aggregate(1, weights(99), updates(3, 1))["bias"].tobytes()
    second.state = first.state
    expected, resumed = whole.aggregate(2, one, updates(3, 2)), second.aggregate(2, one, updates(3, 2))
    assert all(expected[name].tobytes() == resumed[name].tobytes() for name in expected)


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(5)), strategy=st.sampled_from(["fedavg", "fedadam", "median", "trimmed-mean"])
)
def test_no_bit_depends_on_the_order_of_the_updates(order, strategy):
    given_updates = updates(5)
    settings_ = {"minimum_sites": 3} if strategy == "trimmed-mean" else {}
    first = ours(strategy, weights(99), given_updates, **settings_)
    second = ours(strategy, weights(99), [given_updates[i] for i in order], **settings_)
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_the_order_is_fixed_where_it_would_show():
    # float64 keeps 1 beside 1e30 − 1e30 in one order of the sum and loses it in the other
    values = {1: 1e30, 2: -1e30, 3: 3.0}
    given_updates = [
        Update(node_id=i, site_name="", arrays={"w": np.array([x], np.float32)}, num_examples=1, metrics={})
        for i, x in values.items()
    ]
    current = {"w": np.zeros(1, np.float32)}
    for order in ([0, 1, 2], [0, 2, 1], [2, 0, 1]):
        assert ours("fedavg", current, [given_updates[i] for i in order])["w"][0] == 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=8))
def test_the_weighted_mean_equals_exact_arithmetic(parts):
    from fractions import Fraction

    given_updates = [
        Update(node_id=i, site_name="", arrays={"w": np.array([x], np.float32)}, num_examples=n, metrics={})
        for i, (n, x) in enumerate(parts)
    ]
    exact = sum(n * Fraction(x) for n, x in parts) / sum(n for n, _ in parts)
    result = ours("fedavg", {"w": np.zeros(1, np.float32)}, given_updates)["w"][0]
    # float64 sum of ≤ 8 terms below 1e3, then one rounding to float32
    assert float(result) == pytest.approx(float(exact), rel=6.1e-8, abs=1e-11)


@pytest.mark.parametrize("strategy", ["median", "trimmed-mean"])
@pytest.mark.parametrize("attack", [lambda w: -10 * w, lambda w: 1e5 + 0 * w, lambda w: w * 0])
def test_a_robust_rule_stays_among_the_honest_values_whatever_one_site_of_five_sends(strategy, attack):
    honest = updates(4)
    poisoned = {name: np.asarray(attack(array), dtype=np.float32) for name, array in weights(7).items()}
    attacker = Update(node_id=5, site_name="x", arrays=poisoned, num_examples=10**6, metrics={})
    result = ours(strategy, weights(99), [*honest, attacker], minimum_sites=3)
    mean = ours("fedavg", weights(99), [*honest, attacker])
    outside = False
    for name, array in result.items():
        values = np.stack([update.arrays[name] for update in honest])
        assert (array >= values.min(axis=0) - 1e-6).all()
        assert (array <= values.max(axis=0) + 1e-6).all()
        outside |= bool(((mean[name] < values.min(axis=0)) | (mean[name] > values.max(axis=0))).any())
    assert outside  # the plain mean is led astray by the same site


def test_a_model_that_is_no_longer_finite_is_an_error_not_a_result():
    big = {"w": np.full(2, 3e38, np.float32)}
    given_updates = [Update(node_id=1, site_name="", arrays=big, num_examples=1, metrics={})]
    current = {"w": np.full(2, -3e38, np.float32)}
    rule = build_aggregator(RunConfig(strategy="fedadam", server_learning_rate=100.0, server_tau=1e-12))
    rule.state = {"m/w": np.full(2, 1e300), "v/w": np.zeros(2)}
    with pytest.raises(FederationError, match="not finite in w"):
        rule.aggregate(1, current, given_updates)
    assert rule.state["m/w"][0] == 1e300  # and the old moments are kept


def test_nothing_to_aggregate_is_an_error():
    with pytest.raises(InvalidInputError):
        ours("fedavg", weights(1), [])


def test_flowers_unguarded_mean_shows_why_the_validator_is_there():
    """The same broadcastable update that ours rejects: Flower's weighted mean takes it."""
    one = Update(
        node_id=1, site_name="", arrays={"w": np.arange(3, dtype=np.float32)}, num_examples=1, metrics={}
    )
    two = Update(
        node_id=2, site_name="", arrays={"w": np.ones(1, np.float32)}, num_examples=10**15, metrics={}
    )
    assert np.allclose(flowers(FedAvg(), [one, two])["w"], 1.0)
