"""Krum's scores and choices against brute force, against Flower's own, and against planted sites."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import MultiKrum
from hypothesis import given, settings
from hypothesis import strategies as st
from update_examples import flowers, ours, updates, weights

from federation.config import RunConfig
from federation.coordinator.krum import Krum, krum_scores, squared_distances
from instahide.errors import FederationError, InvalidInputError

ZERO = {name: np.zeros_like(array) for name, array in weights(0).items()}


def flat(update):
    return np.concatenate([array.ravel() for array in update.arrays.values()]).astype(np.float64)


@given(count=st.integers(5, 9), seed=st.integers(0, 1000), malicious=st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_scores_equal_the_formula_written_out(count, seed, malicious):
    given_updates = updates(count, seed)
    found = krum_scores(squared_distances(given_updates, weights(seed)), malicious)
    for row, update in enumerate(given_updates):
        distances = sorted(
            float(((flat(update) - flat(other)) ** 2).sum()) for other in given_updates if other is not update
        )
        assert found[row] == pytest.approx(sum(distances[: count - malicious - 2]), rel=1e-9)


def test_distances_of_large_models_close_together_keep_their_digits():
    near = updates(3)
    for place, update in enumerate(near):
        for name in update.arrays:
            update.arrays[name] = np.asarray(
                weights(9)[name] * np.float32(1000) + np.float32(place * 2**-7), dtype=np.float32
            )
    exact = ((flat(near[0]) - flat(near[1])) ** 2).sum()
    found = squared_distances(near, near[0].arrays)[0, 1]
    assert found == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_krum_chooses_what_flowers_krum_chooses(seed):
    given_updates = updates(7, seed)
    config = {"num_malicious_nodes": 1, "minimum_sites": 5}
    one = ours("krum", weights(seed), given_updates, **config)
    theirs = flowers(MultiKrum(num_malicious_nodes=1, num_nodes_to_select=1), given_updates)
    assert all(np.array_equal(one[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("seed", range(5))
def test_multi_krum_averages_what_flowers_selects_without_weights(seed):
    given_updates = [u.__class__(**{**u.__dict__, "num_examples": 10}) for u in updates(9, seed)]
    config = {"num_malicious_nodes": 2, "num_nodes_to_select": 4, "minimum_sites": 7}
    mine = ours("multi-krum", weights(seed), given_updates, **config)
    theirs = flowers(MultiKrum(num_malicious_nodes=2, num_nodes_to_select=4), given_updates)
    assert all(np.allclose(mine[name], theirs[name], atol=2e-6) for name in theirs)


@pytest.mark.parametrize(("count", "bad"), [(5, 1), (10, 2)])
@pytest.mark.parametrize("factor", [-1.0, 10.0, 1e5])
def test_updates_turned_or_blown_up_are_left_out_and_named(count, bad, factor):
    rng = np.random.default_rng(count)
    given_updates = updates(count)
    for place, update in enumerate(given_updates):
        for name, array in update.arrays.items():
            honest = np.float32(1) + 0.1 * rng.standard_normal(array.shape).astype(np.float32)
            update.arrays[name] = np.asarray(honest * np.float32(factor if place < bad else 1.0))
    rule = Krum(num_malicious_nodes=bad, num_nodes_to_select=0)
    result = rule.aggregate(1, ZERO, given_updates)
    assert rule.left_out == [update.site_name for update in given_updates[:bad]]
    assert all(abs(float(array.mean()) - 1) < 0.2 for array in result.values())


def test_fewer_than_2f_plus_3_updates_are_refused():
    with pytest.raises(FederationError, match="needs 7 updates; 6 came"):
        Krum(num_malicious_nodes=2, num_nodes_to_select=1).aggregate(1, ZERO, updates(6))


def test_selecting_so_many_that_a_malicious_one_is_kept_is_refused():
    with pytest.raises(FederationError, match="num-nodes-to-select 6"):
        Krum(num_malicious_nodes=2, num_nodes_to_select=6).aggregate(1, ZERO, updates(7))


def test_a_quorum_below_2f_plus_3_is_refused_when_the_run_is_planned():
    with pytest.raises(InvalidInputError, match="minimum-sites is 4"):
        RunConfig(strategy="krum", num_malicious_nodes=1, minimum_sites=4)
