"""Requests and replies: what belongs passes unchanged, everything else is refused by name."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.config import RunConfig
from federation.messages import (
    ALLOWED_METRICS,
    COUNT_METRICS,
    EVALUATE,
    PROTOCOL_VERSION,
    Refusal,
    RoundRequest,
    SiteReply,
    check_metrics,
    one_line,
)
from instahide.errors import InvalidInputError

ARRAYS = {"layer.weight": np.ones((2, 3), np.float32), "scale": np.array(2.0, np.float32)}
REQUEST = RoundRequest.for_round(RunConfig(class_names=("a", "b"), image_shape=(1, 8, 8)), 2, ARRAYS)
METRICS = {"num-examples": 12, "train-loss": 0.5, "evaluate-num-examples": 3, "evaluate-accuracy-plain": 1.0}


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


# --- requests ---------------------------------------------------------------------------------------


def test_a_request_survives_the_round_trip():
    again = RoundRequest.from_mapping(REQUEST.to_mapping(), arrays=ARRAYS)
    assert again == REQUEST
    assert again.arrays is ARRAYS


def test_the_config_record_holds_exactly_the_protocols_keys():
    names = """
        protocol-version server-round run-name model initialization-seed absolute-input class-names
        local-epochs batch-size learning-rate momentum weight-decay optimizer lr-schedule equivalent-to
        num-server-rounds image-shape proximal-mu encoding encoding-mode num-mixed num-private evaluate
        num-views differential-privacy noise-multiplier max-grad-norm target-delta target-epsilon
        minimum-sites max-update-norm max-site-examples audit-head
        secure-aggregation roster reconstruction-threshold confirm-survivors ring-bits clipping-range
    """
    assert set(REQUEST.to_mapping()) == set(names.split())


@pytest.mark.parametrize("key", sorted(["protocol-version", "server-round"]))
def test_a_request_without_its_round_or_version_is_refused(key):
    mapping = {name: value for name, value in REQUEST.to_mapping().items() if name != key}
    with pytest.raises(InvalidInputError, match=key):
        RoundRequest.from_mapping(mapping)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"protocol-version": 1}, "protocol version 1"),
        ({"server-round": 4}, "round 4"),
        ({"server-round": 0}, "server-round"),
        ({"run-directory": "/data"}, "run-directory"),
        ({"local-epochs": 10**9}, "local-epochs"),
        ({"num-mixed": "4"}, "num-mixed"),
    ],
)
def test_a_request_out_of_range_is_refused_by_name(change, named):
    with pytest.raises(InvalidInputError, match=named):
        RoundRequest.from_mapping(REQUEST.to_mapping() | change)


def test_only_train_and_evaluate_exist():
    assert replace(REQUEST, kind=EVALUATE).kind == EVALUATE
    with pytest.raises(InvalidInputError, match="query"):
        replace(REQUEST, kind="query")


# --- replies ----------------------------------------------------------------------------------------


def test_a_reply_survives_the_round_trip():
    reply = SiteReply(site_name="St. Anna", metrics=METRICS, arrays=ARRAYS)
    assert SiteReply.from_mapping(reply.to_mapping(), ARRAYS) == reply
    no = SiteReply(site_name="St. Anna", refusal=Refusal(reason="no", hint="ask", kind="policy"))
    assert SiteReply.from_mapping(no.to_mapping()) == no


@pytest.mark.parametrize(
    ("records", "arrays"),
    [
        ({}, {}),
        ({"site": {}}, {}),
        ({"site": {"name": "A", "data-sha256": "0"}}, {}),
        ({"site": {"name": 1}}, {}),
        ({"site": {"name": "A" * 101}}, {}),
        ({"site": {"name": "A\nB"}}, {}),
        ({"site": {"name": "A"}, "extra": {}}, {}),
        ({"site": {"name": "A"}, "refusal": {}}, {}),
        ({"site": {"name": "A"}, "refusal": {"reason": "no", "kind": "mood"}}, {}),
        ({"site": {"name": "A"}, "refusal": {"reason": "x" * 1001}}, {}),
        ({"site": {"name": "A"}, "refusal": {"reason": "no"}, "metrics": METRICS}, {}),
        ({"site": {"name": "A"}, "refusal": {"reason": "no"}}, ARRAYS),
        ({"site": {"name": "A"}, "metrics": {"patient": 1}}, {}),
        ({"site": {"name": "A"}}, {"../x": ARRAYS["scale"]}),
        ({"site": {"name": "A"}}, {"x": np.zeros(2)}),
        ({"site": {"name": "A"}}, {"x": [1.0]}),
        ({"site": {"name": "A"}}, {str(i): ARRAYS["scale"] for i in range(10_001)}),
    ],
)
def test_a_reply_with_anything_that_does_not_belong_is_refused(records, arrays):
    with pytest.raises(InvalidInputError) as refusal:
        SiteReply.from_mapping(records, arrays)
    assert len(str(refusal.value)) < 500


@given(
    st.sampled_from(sorted(ALLOWED_METRICS)), st.one_of(st.integers(), st.floats(), st.booleans(), st.text())
)
def test_a_metric_passes_exactly_when_it_is_in_its_range(name, value):
    if name in COUNT_METRICS:
        good = type(value) is int and 0 <= value < 2**63
    else:
        good = type(value) is float and 0.0 <= value < float("inf") and not ("accuracy" in name and value > 1)
    try:
        check_metrics({name: value})
        passed = True
    except InvalidInputError:
        passed = False
    assert passed == good


def test_any_text_becomes_a_refusal_on_one_line():
    refusal = Refusal.from_text("first\nsecond\x1b[31m" + "x" * 5000)
    assert refusal.reason.startswith("first second [31mxxx")
    assert len(refusal.reason) == 1000


@given(st.text())
def test_one_line_is_printable_and_not_longer(text):
    line = one_line(text, 20)
    assert line.isprintable()
    assert len(line) <= 20


def test_the_version_is_two():
    assert PROTOCOL_VERSION == 2
