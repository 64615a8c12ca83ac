"""Metrics in Prometheus' text format, version 0.0.4, for node_exporter's textfile collector.

    # HELP NAME what it is
    # TYPE NAME gauge | counter | summary
    NAME{label="value"} number

A backslash, a line break and (in a label) a double quote are escaped; every family has its HELP and TYPE
once, before its samples, and no sample twice. There are no time stamps: the collector takes none.
Names follow Prometheus' conventions: a prefix, base units (seconds, ratio), ``_total`` for counters.
Source: "Exposition formats" and "Metric and label naming" of Prometheus' documentation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
KINDS: Final = ("gauge", "counter", "summary")

Labels = Mapping[str, str]


@dataclass
class Family:
    """A metric: its samples differ in their labels only. A summary has ``_sum`` and ``_count``."""

    name: str
    kind: str
    meaning: str
    samples: list[tuple[str, dict[str, str], float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert _NAME.fullmatch(self.name), self.name
        assert self.kind in KINDS, self.kind
        assert (self.kind == "counter") == self.name.endswith("_total"), self.name

    def add(self, value: float | None, *, suffix: str = "", **labels: str) -> None:
        """One sample; None is no sample."""
        if value is not None:
            self.samples.append((self.name + suffix, dict(labels), float(value)))

    def lines(self, common: Labels) -> list[str]:
        """The family as text, ``common`` labels first; nothing without samples."""
        if not self.samples:
            return []
        by_series = {
            f"{name}{_labels({**common, **labels})}": value for name, labels, value in self.samples
        }  # none twice
        written = [f"{series} {_number(value)}" for series, value in by_series.items()]
        return [f"# HELP {self.name} {_escaped(self.meaning)}", f"# TYPE {self.name} {self.kind}", *written]


def exposition(families: Iterable[Family], **common: str) -> str:
    """The text of a ``.prom`` file; ``common`` labels are on every sample: one collector reads many files."""
    return "".join(line + "\n" for family in families for line in family.lines(common))


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    assert all(_NAME.fullmatch(name) for name in labels), labels
    pairs = (f'{name}="{_escaped(value, quote=True)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
