"""The text format: what is written is read back by a reader that was written from the specification."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.status.prometheus import Family, exposition

from .exposition_parser import parse, parse_sample

VALUES = st.floats() | st.integers(min_value=-(10**18), max_value=10**18)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), st.text(), max_size=3),
    value=VALUES,
    meaning=st.text(min_size=1).filter(lambda text: "\r" not in text and text.strip() == text),
)
def test_any_label_and_number_comes_back(labels: dict[str, str], value: float, meaning: str) -> None:
    labels = {name: text.replace("\r", "") for name, text in labels.items()}
    family = Family("instahide_x", "gauge", meaning)
    family.add(value, **labels)
    [(name, [sample])] = parse(exposition([family])).items()
    assert (name, dict(sample.labels)) == ("instahide_x", labels)
    same = sample.value == float(value) or (math.isnan(sample.value) and math.isnan(value))
    assert same


def test_a_family_without_samples_is_left_out_and_none_is_no_sample() -> None:
    empty, one = Family("instahide_a", "gauge", "a"), Family("instahide_b_total", "counter", "b")
    empty.add(None, site="x")
    one.add(3, site="x")
    assert exposition([empty, one]) == (
        '# HELP instahide_b_total b\n# TYPE instahide_b_total counter\ninstahide_b_total{site="x"} 3\n'
    )


def test_a_series_is_written_once_with_its_last_value() -> None:
    family = Family("instahide_a", "gauge", "a")
    family.add(1, site="x")
    family.add(2, site="x")
    assert [sample.value for sample in parse(exposition([family]))["instahide_a"]] == [2.0]


@pytest.mark.parametrize("name", ["Rounds", "rounds-total", "1st", ""])
def test_a_wrong_name_is_a_bug(name: str) -> None:
    with pytest.raises(AssertionError):
        Family(name, "gauge", "x")


def test_only_counters_end_in_total() -> None:
    with pytest.raises(AssertionError):
        Family("instahide_rounds", "counter", "x")
    with pytest.raises(AssertionError):
        Family("instahide_rounds_total", "gauge", "x")


@pytest.mark.parametrize(
    "line",
    ["x", "x{a=b} 1", 'x{a="b"} 1 1700000000', 'x{a="b} 1', "x 1,5", 'x{a="b",a="c"} 1', 'x{__a="b"} 1'],
)
def test_the_reader_of_these_tests_refuses_what_is_wrong(line: str) -> None:
    with pytest.raises(AssertionError):
        parse_sample(line)
