"""A strict reader of Prometheus' text format, written from its specification and not from our writer.

Stricter than Prometheus: each family has HELP, then TYPE, then all its samples; none without samples;
no sample twice; names and counters by the conventions; no time stamps; "\\n" alone ends lines.
"""

from __future__ import annotations

import re
from typing import NamedTuple

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r"[a-zA-Z_][a-zA-Z0-9_]*"
VALUE = r"[+-]?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+|Inf)|NaN"
SUFFIXES = {"summary": ("_sum", "_count"), "gauge": ("",), "counter": ("",)}
UNITS = ("seconds", "bytes", "ratio")
NOT_BASE_UNITS = ("milliseconds", "minutes", "hours", "days", "percent", "kilobytes", "megabytes")


class Sample(NamedTuple):
    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


def parse(text: str) -> dict[str, list[Sample]]:
    """Family → samples. AssertionError for whatever breaks the format or a convention."""
    assert text.endswith("\n")
    assert "\r" not in text
    families: dict[str, list[Sample]] = {}
    kinds: dict[str, str] = {}
    name, series = "", set[tuple[str, frozenset[tuple[str, str]]]]()
    for line in text[:-1].split("\n"):
        if match := re.fullmatch(rf"# HELP ({NAME}) (.+)", line):
            name = match[1]
            assert name not in families, f"{name} comes twice"
            assert "\\" not in re.sub(r"\\[\\n]", "", match[2])
            families[name] = []
        elif match := re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge|summary)", line):
            assert match[1] == name
            assert name not in kinds, "a second TYPE"
            assert not families[name], "TYPE after samples"
            kinds[name] = match[2]
            check_name(name, match[2])
        else:
            sample = parse_sample(line)
            assert sample.name in [name + suffix for suffix in SUFFIXES[kinds[name]]], line
            key = (sample.name, frozenset(sample.labels))
            assert key not in series, f"twice: {line}"
            series.add(key)
            families[name].append(sample)
            if kinds[name] == "counter":
                assert sample.value >= 0
    assert all(families.values()), "a family without samples"
    assert set(kinds) == set(families)
    return families


def check_name(name: str, kind: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name), name
    assert name.startswith("instahide_")
    assert name.endswith("_total") == (kind == "counter"), name
    assert not name.endswith(("_sum", "_count", "_bucket")), name
    assert not any(unit in name for unit in NOT_BASE_UNITS), name


def parse_sample(line: str) -> Sample:
    match = re.fullmatch(rf"({NAME})(?:\{{(.*)\}})? ({VALUE})", line)
    assert match, line
    return Sample(match[1], tuple(parse_labels(match[2] or "")), float(match[3]))


def parse_labels(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    while text:
        match = re.match(rf'({LABEL})="((?:[^"\\\n]|\\["\\n])*)"', text)
        assert match, text
        assert not match[1].startswith("__")
        value = re.sub(r"\\(.)", lambda escaped: {"n": "\n"}.get(escaped[1], escaped[1]), match[2])
        found.append((match[1], value))
        text = text[match.end() :]
        assert not text or text[0] == ",", text
        text = text[1:]
    names = [name for name, _ in found]
    assert len(set(names)) == len(names)
    return found
