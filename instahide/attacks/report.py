"""The report of an audit: one self-contained page for people, one JSON file for programs.

A privacy officer reads the first table and the verdicts; a researcher the figures, intervals, curves,
checks and assumptions below each. Every threat model of the catalogue is named, and one that nothing was
run for says so: an attack that was not tried is not an attack that failed. A figure is a lower bound on
what leaks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..atomic import atomic_write_text
from ..html_page import heading, line_chart, page, paragraph, pictures, table
from .catalogue import CATALOGUE
from .metrics import in_words
from .result_files import StoredResult, read_results, read_sheet

THREATS = {
    "recovery": "Images rebuilt from encodings",
    "membership": "Known images recognised",
    "update": "Inputs read off a model update",
    "implementation": "Secrets the implementation gives away",
    "privacy-budget": "A claimed privacy budget contradicted",
}
LOG_SCALES = ("(log scale)", "(log)")
MAX_TABLE_POINTS = 12
WHOLE_AUDIT = "implementation audits"
FINDINGS = {True: "leaks", False: "nothing found", None: "undecided"}


def write_report(root: Path, out: Path | None = None) -> dict[str, Any]:
    """Write ``index.html`` and ``report.json`` from every result below ``root``.

    Args:
        out: folder to write to; ``root`` by default.

    Returns:
        what ``report.json`` holds.

    Raises:
        InvalidInputError: no result below ``root``.
        IntegrityError: a damaged result.
    """
    results = read_results(root)
    folder = out or root
    folder.mkdir(parents=True, exist_ok=True)
    summary = _summary(results, root)
    atomic_write_text(folder / "index.html", render(results))
    atomic_write_text(folder / "report.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def render(results: Sequence[StoredResult]) -> str:
    """The page."""
    grouped = {threat: [item for item in results if _threat(item) == threat] for threat in THREATS}
    return page(
        "What leaks: attack report",
        paragraph(
            "InstaHide is broken (Carlini et al. 2020): an encoding is a transformation, not encryption, and "
            "no figure here is a guarantee. Each is what one attack reached; a better attacker reaches more.",
            kind="warning",
        ),
        heading("In one look"),
        table(["threat", "finding", "verdict", "attack", "processor s"], _overview(grouped)),
        *(
            part
            for threat, items in grouped.items()
            for part in [heading(THREATS[threat]), *_section(threat, items)]
        ),
        heading("What this report does not say"),
        paragraph(
            "Attacks that were not run, attackers with more knowledge than assumed, and attacks not yet "
            "found are outside of it. An attack that finds nothing means something only where its power "
            "check passed: planted canaries of the same kind were found."
        ),
    )


def _overview(grouped: Mapping[str, Sequence[StoredResult]]) -> list[list[str | float | None]]:
    rows: list[list[str | float | None]] = []
    for threat, items in grouped.items():
        if not items:
            rows.append([THREATS[threat], "not tried", "", "", None])
        whole = [item for item in items if item.values["name"] == WHOLE_AUDIT]
        for item in items:
            values = item.values
            # Ten audits are one line, with one more for each that found something.
            if whole and item not in whole and values["leaked"] is False:
                continue
            cost = float(values["cpu_seconds"])
            rows.append([THREATS[threat], FINDINGS[values["leaked"]], _verdict(values), values["name"], cost])
    return rows


def _section(threat: str, items: Sequence[StoredResult]) -> list[str]:
    if not items:
        names = ", ".join(f"`{item.name}`" for item in CATALOGUE if item.threat == threat)
        return [paragraph(f"Nothing was run here. `instahide attack run` offers {names}.", kind="soft")]
    return [part for item in items for part in _one(item)]


def _one(item: StoredResult) -> list[str]:
    values = item.values
    return [
        f"<h3>{escape(values['name'])}</h3>",
        paragraph(_verdict(values), kind="warning" if values["leaked"] else ""),
        *_numbers(values),
        *_curves(values),
        *_pictures(item),
        *(paragraph(f"{name} check: {text}") for name, text in values["checks"].items()),
        _list("Assumed", values["assumptions"]),
        paragraph(_cost(values), kind="soft"),
    ]


def _numbers(values: Mapping[str, Any]) -> list[str]:
    """The table of figures, without columns that would be empty; nothing if nothing was measured."""
    if not values["metrics"]:
        return []
    names = ["measure", "attack", "95 % interval", "without the release"]
    rows: list[list[str | float]] = []
    for name, value in values["metrics"].items():
        limits = values["intervals"].get(name)
        interval = "" if limits is None else f"{limits[0]:.3f} to {limits[1]:.3f}"
        baseline = values["baselines"].get(name)
        rows.append([in_words(name), float(value), interval, "" if baseline is None else f"{baseline:.3f}"])
    kept = [j for j in range(4) if any(row[j] != "" for row in rows)]
    return [table([names[j] for j in kept], [[row[j] for j in kept] for row in rows])]


def _curves(values: Mapping[str, Any]) -> list[str]:
    curves = values["curves"]
    if not curves:
        return []
    x_label, y_label = values["curve_axes"]
    chart = line_chart(
        {name: [(float(x), float(y)) for x, y in line] for name, line in curves.items()},
        x_label=x_label,
        y_label=y_label,
        caption=f"{values['name']}: {y_label} against {x_label}.",
        log_x=x_label.endswith(LOG_SCALES),
        log_y=y_label.endswith(LOG_SCALES),
    )
    lines = [{float(x): float(y) for x, y in line} for line in curves.values()]
    shown = _thinned(sorted(set().union(*lines)))
    rows = [[x, *(line.get(x, "") for line in lines)] for x in shown]
    return [chart, table([x_label, *curves], rows)]


def _thinned(values: list[float]) -> list[float]:
    """At most so many of them, the last among them."""
    step = max(1, -(-len(values) // MAX_TABLE_POINTS))
    return values[::-step][::-1]


def _pictures(item: StoredResult) -> list[str]:
    sheets = [(read_sheet(path), caption) for caption, path in item.pictures.items() if path.is_file()]
    return [pictures(sheets)] if sheets else []


def _list(title: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<p>{escape(title)}:</p><ul>{items}</ul>"


def _cost(values: Mapping[str, Any]) -> str:
    parts = [f"{values['cpu_seconds']:.1f} processor seconds"]
    if values["wall_seconds"]:
        parts.append(f"{values['wall_seconds']:.1f} s in all")
    if values["peak_bytes"]:
        parts.append(f"{values['peak_bytes'] / 1e6:,.0f} MB of memory")
    if values["seed"] is not None:
        parts.append(f"attacker's seed {values['seed']}")
    return f"Cost: {', '.join(parts)}. Program version {values['version']}."


def _verdict(values: Mapping[str, Any]) -> str:
    return str(values["verdict"] or "no verdict was reached")


def _threat(item: StoredResult) -> str:
    by_name = {entry.name: entry.threat for entry in CATALOGUE}
    attack = str(item.values["attack"])
    return by_name.get(attack, "recovery")


def _summary(results: Sequence[StoredResult], root: Path) -> dict[str, Any]:
    threats: dict[str, Any] = {}
    for threat, title in THREATS.items():
        items = [item for item in results if _threat(item) == threat]
        threats[threat] = {
            "title": title,
            "tried": bool(items),
            "leaked": any(item.values["leaked"] for item in items) if items else None,
            "results": [{"folder": str(item.folder.relative_to(root)), **item.values} for item in items],
        }
    return {"format": "instahide-attack-report/1", "threats": threats}
