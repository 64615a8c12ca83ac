"""A site's own status page, for its IT and its privacy officer; it never leaves the site by itself."""

from __future__ import annotations

from typing import Any, Final

from instahide.html_page import heading, page, paragraph, table

from .connection import CONNECTED, UNKNOWN
from .node_status import LISTENING, NodeStatus
from .page_parts import (
    REFRESH_SECONDS,
    Cell,
    age_of_the_page,
    days_in_words,
    moment_in_words,
    outside,
    table_of_troubles,
    time_in_words,
)

MOST_RUNS: Final = 20


def node_page(status: NodeStatus) -> str:
    """The whole document."""
    return page(
        f"Node status: {status.name}",
        _service(status),
        age_of_the_page(status.made_at, "`instahide node start`"),
        *(paragraph(outside(note), kind="warning") for note in status.notes),
        *_plans(status),
        heading("In one look"),
        table(["what", "now"], _summary(status)),
        heading("Runs this site served"),
        *_runs(status),
        heading("What left"),
        *_exposures(status),
        *_privacy(status.privacy),
        heading("Refusals"),
        *_refusals(status),
        heading("What this page does not say"),
        paragraph(
            "It repeats this site's own files: the audit log (`instahide log verify` checks it), the ledgers "
            "and the plans. What others made of the updates that left, and encodings written to files by "
            "hand, are not in them."
        ),
        refresh_seconds=REFRESH_SECONDS,
    )


def _service(status: NodeStatus) -> str:
    if status.worker != LISTENING:
        return paragraph("The site worker is down: `instahide node start`.", kind="warning")
    if status.connection.state == UNKNOWN:
        words = "The site worker is up. Whether its relay is connected, the relay's own log says."
        return paragraph(words)
    if status.connection.state != CONNECTED:
        reason = f": {outside(status.connection.reason)}" if status.connection.reason else ""
        return paragraph(
            f"The site worker is up; the connection to the coordinator is {status.connection.state}{reason}. "
            "`instahide node doctor` looks at it step by step.",
            kind="warning",
        )
    return paragraph(f"This node serves the coordinator at `{status.coordinator}`.")


def _plans(status: NodeStatus) -> list[str]:
    return [
        paragraph(f"A plan waits for a decision: `instahide node plan show NODE {sha256}`.", kind="warning")
        for sha256 in status.waiting_plans
    ]


def _summary(status: NodeStatus) -> list[list[Cell]]:
    since = time_in_words(status.connection.since, status.made_at)
    ends = status.authority_ends
    return [
        ["site worker", status.worker],
        ["coordinator", status.coordinator or "not joined yet"],
        ["connection", f"{status.connection.state} since {since}" if since else status.connection.state],
        ["plans that wait", str(len(status.waiting_plans))],
        ["updates sent", str(status.records.updates_sent)],
        ["requests refused", str(status.records.refusals.total())],
        ["requests given up by the other side", str(status.records.abandoned)],
        [
            "coordinator's authority ends",
            "not joined yet"
            if ends is None
            else f"{moment_in_words(ends)}, {days_in_words((ends - status.made_at).days)}",
        ],
        ["records in the audit log", f"{status.records.num_records:,}"],
    ]


def _runs(status: NodeStatus) -> list[str]:
    runs = list(status.records.runs.values())[-MOST_RUNS:][::-1]
    if not runs:
        return [paragraph("None yet.", kind="soft")]
    rows: list[list[Cell]] = [
        [run.name, run.rounds, run.measurements, run.last_round, time_in_words(run.last_at, status.made_at)]
        for run in runs
    ]
    return [table(["run", "updates sent", "models measured", "last round", "last answer (UTC)"], rows)]


def _exposures(status: NodeStatus) -> list[str]:
    counts = status.records.exposures
    if not counts:
        return [paragraph("No update has left this site.", kind="soft")]
    rows: list[list[Cell]] = [
        ["encodings with an image of this site as the first, all images together", counts.get("own")],
        ["uses of an image in the encoding of another one, all together", counts.get("partner")],
        ["encodings of the image encoded most often", counts.get("largest")],
    ]
    return [table(["behind updates that left", "count"], rows)]


def _privacy(report: dict[str, Any] | None) -> list[str]:
    """Only where differential privacy was ever charged: encodings have no figure."""
    if report is None:
        return []
    cap = "none" if report["max-epsilon"] is None else f"{report['max-epsilon']:g}"
    rows: list[list[Cell]] = [
        ["all runs", _epsilon(report["epsilon-spent"]), cap],
        *([run["run-name"], _epsilon(run["epsilon"]), ""] for run in report["runs"]),
    ]
    words = f"At delta {report['delta']:g}; it protects {report['unit']}."
    if without := report["runs-without-differential-privacy"]:
        words += f" No figure covers {outside(', '.join(without))}, which trained without."
    return [table(["differential privacy of", "epsilon spent", "this site's cap"], rows), paragraph(words)]


def _epsilon(value: float | None) -> str:
    return "above 30, which promises nothing" if value is None else f"{value:.3g}"


def _refusals(status: NodeStatus) -> list[str]:
    troubles = list(status.records.troubles)[::-1]
    if not troubles:
        return [paragraph("None.", kind="soft")]
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(status.records.refusals.items()))
    return [paragraph(f"In all: {counts}."), table_of_troubles(troubles, status.made_at, with_site=False)]
