"""What was tried and what survived: one row a scenario and case, as a table and as JSON.

Rows travel in the tests' own reports, so the table is whole however pytest runs them.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROPERTY = "chaos"


@dataclass
class Attempt:
    """One try: how many rounds it cost and how long it took to recover, if it did."""

    rounds_lost: int | None = None
    seconds: float | None = None
    survived: bool = False


@dataclass
class Recorder:
    """Collects the attempts of one test; ``properties`` are pytest's, which reports carry."""

    properties: list[tuple[str, object]] = field(default_factory=list)

    @contextmanager
    def attempt(self, scenario: str, case: str) -> Iterator[Attempt]:
        """One try; it survived if the block raises nothing. Seconds are the block's to measure."""
        tried = Attempt()
        try:
            yield tried
            tried.survived = True
        finally:
            self._record(scenario, case, tried)

    def sweep(self, scenario: str, case: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """The rows of a sweep; each is one try."""
        for row in rows:
            phase = row["phase"] or case
            tried = Attempt(row["lost"], row["seconds"], not row["faults"])
            self._record(scenario, phase, tried)

    def _record(self, scenario: str, case: str, tried: Attempt) -> None:
        self.properties.append((PROPERTY, {"scenario": scenario, "case": case} | vars(tried)))


@dataclass
class Timer:
    """Seconds since it was made."""

    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def summary(attempts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a (scenario, case): tried, survived, most rounds lost, median and longest recovery."""
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for attempt in attempts:
        rows.setdefault((attempt["scenario"], attempt["case"]), []).append(attempt)
    return [_row(scenario, case, tries) for (scenario, case), tries in rows.items()]


def _row(scenario: str, case: str, tries: list[Mapping[str, Any]]) -> dict[str, Any]:
    lost = [entry["rounds_lost"] for entry in tries if entry["rounds_lost"] is not None]
    seconds = [entry["seconds"] for entry in tries if entry["seconds"] is not None]
    return {
        "scenario": scenario,
        "case": case,
        "tried": len(tries),
        "survived": sum(bool(entry["survived"]) for entry in tries),
        "rounds-lost": max(lost, default=None),
        "recovery-seconds": round(statistics.median(seconds), 2) if seconds else None,
        "longest-recovery-seconds": round(max(seconds), 2) if seconds else None,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as lines of text."""
    heads = ("scenario", "case", "tried", "survived", "rounds lost", "recovery s (median / longest)")
    cells = [heads, *(_cells(row) for row in rows)]
    total = (
        "all",
        "",
        str(sum(row["tried"] for row in rows)),
        str(sum(row["survived"] for row in rows)),
        str(max((row["rounds-lost"] or 0 for row in rows), default=0)),
        "",
    )
    cells.append(total)
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    seconds, longest = row["recovery-seconds"], row["longest-recovery-seconds"]
    lost = "-" if row["rounds-lost"] is None else str(row["rounds-lost"])
    shown = "-" if seconds is None else f"{seconds:.2f} / {longest:.2f}"
    return (row["scenario"], row["case"], str(row["tried"]), str(row["survived"]), lost, shown)


def write_json(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The rows as a JSON file."""
    path.write_text(json.dumps({"rows": list(rows)}, indent=1) + "\n", encoding="utf-8")
