"""No update that breaks a rule gets past the validator, and it never changes a bit of the aggregate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from coordinator_fakes import NAMES, honest, initial_weights, prepare, reply_with
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.config import RunConfig
from federation.coordinator.sites import Site, SiteBook
from federation.coordinator.strategies import build_aggregator
from federation.coordinator.validation import (
    RejectedUpdateError,
    UpdateValidator,
    update_norm,
    weighted_metrics,
)
from federation.messages import EVALUATE, TRAIN, RoundRequest, SiteReply
from instahide.errors import InvalidInputError

ANNA, BERN, CORK = NAMES
REFERENCE = initial_weights()
CONFIG = RunConfig(num_server_rounds=9, max_update_norm=50.0, max_weight=1e4)
REQUEST = RoundRequest.for_round(CONFIG, 1, REFERENCE)
BOOK = SiteBook(Site(node_id=node, name=name, num_examples=1000) for node, name in NAMES.items())


def good(node=CORK):
    return honest(node, REQUEST)


def check(reply, config=CONFIG, node=CORK, kind=TRAIN):
    return UpdateValidator(config, BOOK).check(node, reply, REFERENCE, kind)


def unchecked(reply, **fields):
    """A reply with fields that the constructor would refuse, as a hostile sender's would be."""
    bad = object.__new__(SiteReply)
    bad.__dict__.update(reply.__dict__ | fields)
    return bad


# --- generated bad updates --------------------------------------------------------------------------

bad_values = st.sampled_from([np.nan, np.inf, -np.inf, 1e38, -1e38, 1.0001e4, float(np.float32(3.4e38))])
names = st.sampled_from(sorted(REFERENCE))


@st.composite
def bad_arrays(draw):
    """The reference's arrays with one thing wrong: a value, a shape, a dtype, a name, or the norm."""
    arrays = dict(good().arrays)
    name = draw(names)
    array = arrays[name].copy()
    fault = draw(
        st.sampled_from(["value", "shape", "dtype", "type", "missing", "extra", "renamed", "empty", "norm"])
    )
    if fault == "value":
        array.ravel()[draw(st.integers(0, array.size - 1))] = draw(bad_values)
        arrays[name] = array
    elif fault == "shape":
        shapes = [
            (1,),
            (1, 1),
            (*array.shape, 1),
            (1, *array.shape),
            (0,),
            array.shape[::-1],
            (array.size,),
            (),
        ]
        shape = draw(st.sampled_from([shape for shape in shapes if shape != array.shape]))
        arrays[name] = np.zeros(shape, np.float32)
    elif fault == "dtype":
        dtype = draw(st.sampled_from(["f8", "f2", "i4", "i8", "u1", "?", "c8", "U3", ">f4", "V4", "M8[s]"]))
        arrays[name] = np.zeros(array.shape, dtype)
    elif fault == "type":
        arrays[name] = draw(st.sampled_from([None, 1.0, [1.0], "w", b"w", np.float32(1)]))
    elif fault == "missing":
        del arrays[name]
    elif fault == "extra":
        arrays[draw(st.text(min_size=1).filter(lambda text: text not in REFERENCE))] = array
    elif fault == "renamed":
        arrays[name + "_"] = arrays.pop(name)
    elif fault == "empty":
        arrays = {}
    else:
        # one weight moved by more than the bound of 50, yet below max-weight
        array.ravel()[0] = REFERENCE[name].ravel()[0] + draw(st.floats(60, 9000)) * draw(
            st.sampled_from([-1, 1])
        )
        arrays[name] = array
    return arrays


wrong_sizes = st.one_of(
    st.integers(max_value=0),
    st.integers(min_value=1001),
    st.floats(),
    st.sampled_from([True, False, None, "100", 10**15, -(10**15), [100], float("nan"), float("inf"), 100.0]),
)
wrong_metrics = st.one_of(
    st.tuples(st.text().filter(lambda text: text not in good().metrics), st.floats()),
    st.tuples(st.just("train-loss"), st.sampled_from([np.nan, np.inf, -1.0, "1", True, None, [1.0], 1])),
    st.tuples(st.just("evaluate-accuracy-plain"), st.sampled_from([1.0001, -0.1, np.nan, 10**9, "0.5"])),
    st.tuples(st.just("evaluate-num-examples"), st.sampled_from([-1, 0.5, True, 10**30, np.nan, "3"])),
)


def assert_rejected_and_without_effect(reply):
    validator = UpdateValidator(CONFIG, BOOK)
    accepted = [validator.check(node, good(node), REFERENCE, TRAIN) for node in (ANNA, BERN)]
    before = build_aggregator(CONFIG).aggregate(1, REFERENCE, accepted)
    with pytest.raises(RejectedUpdateError) as rejection:
        accepted.append(validator.check(CORK, reply, REFERENCE, TRAIN))
    assert 0 < len(rejection.value.message) < 400
    after = build_aggregator(CONFIG).aggregate(1, REFERENCE, accepted)
    assert all(before[name].tobytes() == after[name].tobytes() for name in REFERENCE)
    assert validator.sizes == {}


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arrays=bad_arrays())
def test_every_generated_bad_array_is_rejected_and_leaves_the_aggregate_byte_equal(arrays):
    assert_rejected_and_without_effect(unchecked(good(), arrays=arrays))


@settings(max_examples=500, deadline=None)
@given(size=wrong_sizes)
def test_every_wrong_number_of_examples_is_rejected(size):
    assert_rejected_and_without_effect(unchecked(good(), metrics=good().metrics | {"num-examples": size}))


@settings(max_examples=500, deadline=None)
@given(metric=wrong_metrics)
def test_every_wrong_metric_is_rejected(metric):
    assert_rejected_and_without_effect(unchecked(good(), metrics=good().metrics | dict([metric])))


@settings(max_examples=200, deadline=None)
@given(node=st.sampled_from(sorted(NAMES)), scale=st.floats(-5, 5), size=st.integers(1, 1000))
def test_every_update_within_the_rules_is_accepted_as_it_is(node, scale, size):
    arrays = {
        name: np.asarray(array + np.float32(scale), dtype=np.float32) for name, array in REFERENCE.items()
    }
    update = check(reply_with(arrays, node, REQUEST, num_examples=size), node=node)
    assert update.num_examples == size
    assert update.site_name == NAMES[node]
    assert all(update.arrays[name] is arrays[name] for name in arrays)


def test_without_num_examples_there_is_no_weight_and_no_update():
    metrics = {name: value for name, value in good().metrics.items() if name != "num-examples"}
    with pytest.raises(RejectedUpdateError, match="num-examples"):
        check(replace(good(), metrics=metrics))


def test_accuracies_need_the_number_of_images_they_were_measured_on():
    metrics = {name: value for name, value in good().metrics.items() if name != "evaluate-num-examples"}
    with pytest.raises(RejectedUpdateError, match="evaluate-num-examples"):
        check(replace(good(), metrics=metrics))


def test_an_evaluation_brings_no_weights():
    with pytest.raises(RejectedUpdateError, match="evaluation"):
        check(good(), kind=EVALUATE)


# --- norm --------------------------------------------------------------------------------------------


def test_the_norm_is_the_euclidean_distance_over_all_weights():
    arrays = good().arrays
    flat = np.concatenate([(arrays[n].astype(np.float64) - REFERENCE[n]).ravel() for n in REFERENCE])
    assert update_norm(arrays, REFERENCE) == pytest.approx(np.linalg.norm(flat), rel=1e-12)


def test_clip_pulls_an_update_back_on_to_the_sphere_and_keeps_its_direction():
    config = replace(CONFIG, max_update_norm=0.5, over_norm="clip")
    update = check(good(), config)
    assert update.clipped
    # float32 rounds each of 16 weights of size < 4 by at most 2^-23 × 2: 16^0.5 × 5e-7 = 2e-6 in norm
    assert update_norm(update.arrays, REFERENCE) == pytest.approx(0.5, abs=2e-6)
    shrink = 0.5 / update.norm
    for name, array in good().arrays.items():
        expected = REFERENCE[name] + shrink * (array.astype(np.float64) - REFERENCE[name])
        assert np.allclose(update.arrays[name], expected, atol=1e-6)


def test_no_norm_bound_means_no_norm_bound():
    far = {name: array + np.float32(5000) for name, array in REFERENCE.items()}
    far = {name: np.asarray(array, dtype=np.float32) for name, array in far.items()}
    assert check(replace(good(), arrays=far), replace(CONFIG, max_update_norm=0.0)).norm > 5000


# --- sizes and averages --------------------------------------------------------------------------------


def test_an_unregistered_size_is_fixed_by_the_first_good_update_only():
    validator = UpdateValidator(CONFIG, SiteBook())
    rejected = unchecked(good(), arrays={})
    with pytest.raises(RejectedUpdateError):
        validator.check(CORK, rejected, REFERENCE, TRAIN)
    first = validator.check(CORK, reply_with(good().arrays, CORK, REQUEST, num_examples=40), REFERENCE, TRAIN)
    validator.remember_sizes(first)
    validator.check(CORK, reply_with(good().arrays, CORK, REQUEST, num_examples=39), REFERENCE, TRAIN)
    with pytest.raises(RejectedUpdateError, match="from 1 to 40"):
        validator.check(CORK, reply_with(good().arrays, CORK, REQUEST, num_examples=41), REFERENCE, TRAIN)


def test_averages_are_weighted_by_the_images_each_site_measured_on():
    updates = [check(good(node), node=node) for node in NAMES]
    changed = [
        replace(update, metrics=update.metrics | {"evaluate-accuracy-one-view": accuracy})
        for update, accuracy in zip(updates, (0.2, 0.4, 0.9), strict=True)
    ]
    averages = weighted_metrics(changed)
    # sizes 10, 20, 30 and 100, 200, 300 (reply_with); losses 0.25, 0.5, 0.75
    assert averages["evaluate-accuracy-one-view"] == pytest.approx((10 * 0.2 + 20 * 0.4 + 30 * 0.9) / 60)
    assert averages["train-loss"] == pytest.approx((100 * 0.25 + 200 * 0.5 + 300 * 0.75) / 600)
    assert "evaluate-accuracy-ten-views" not in averages


def test_a_site_without_test_images_does_not_disturb_the_average():
    none = replace(check(good()), metrics={"evaluate-num-examples": 0, "evaluate-accuracy-plain": 1.0})
    assert weighted_metrics([none]) == {}


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"x": "Anna"}',
        '{"1": ""}',
        '{"1": {"name": "A", "color": 1}}',
        '{"1": {"name": "A", "num-examples": -1}}',
        '{"1": "A", "2": "A"}',
        '{"1": "a\\nb"}',
    ],
)
def test_a_wrong_sites_file_is_refused(tmp_path, text):
    (tmp_path / "sites.json").write_text(text)
    with pytest.raises(InvalidInputError, match=r"sites\.json"):
        SiteBook.read(tmp_path / "sites.json")


def test_a_sites_file_gives_names_and_registered_sizes(tmp_path):
    prepare(tmp_path, {11: "Anna", 12: {"name": "Bern", "num-examples": 7}})
    book = SiteBook.read(tmp_path / "sites.json")
    assert (book.name(11), book.sites[12].num_examples, book.knows(13)) == ("Anna", 7, False)
