"""The frontier to look at: one table, one picture, and what the columns mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...atomic import atomic_write_text
from ...html_page import heading, page, paragraph, scatter_chart, table
from .leaks import Leak
from .table import FrontierRow
from .training import TARGET_DELTA

COLUMNS = (
    "defence",
    "plain query",
    "one encoded view",
    "ten views",
    "rebuilt from encodings (SSIM)",
    "recognised in encodings (AUC)",
    "recognised in the model (AUC)",
    "rebuilt from one update (SSIM)",
    "epsilon",
    "training, times plain",
    "attacks (processor s)",
)


def write_frontier_page(rows: Sequence[FrontierRow], source: str, file: Path) -> None:
    """Write the page for ``rows`` measured on ``source`` (words for the data set)."""
    atomic_write_text(file, render(rows, source))


def render(rows: Sequence[FrontierRow], source: str) -> str:
    """The page."""
    return page(
        "What each defence costs, and what still leaks",
        paragraph(
            "Every figure of a leak is what one attack reached, so a lower bound. InstaHide in any form has "
            "no guarantee; an epsilon stands only where differential privacy gives one.",
            kind="warning",
        ),
        paragraph(
            f"Data: {source}. One run of every defence; the attacks know the defence and its settings."
        ),
        heading("Accuracy against the worst leak"),
        scatter_chart(
            {row.name: (row.accuracy["plain"] or 0.0, row.worst) for row in rows},
            x_label="accuracy, plain query",
            y_label="worst leak (0 chance, 1 everything)",
            caption="Right and low is better. The worst leak is the largest of the four, each between chance "
            "(0) and everything (1).",
        ),
        heading("The table"),
        table(COLUMNS, [_cells(row, rows[0]) for row in rows]),
        heading("How to read it"),
        paragraph(
            "SSIM 1 is the image itself; chance is what an attacker without the material reaches. AUC 0.5 is "
            "guessing, 1 is certainty. A dash means that nothing of the kind leaves."
        ),
        paragraph(
            "Accuracy is given for three ways to ask the model: a plain query is not protected at all. "
            "Recovery and recognition from encodings assume that the encodings were handed over; "
            "the update column assumes a coordinator that sees a gradient of one image (of five sites' "
            "sum under secure aggregation), and for encodings compares what it gets with the private image."
        ),
        paragraph(f"Epsilon: of one image, delta {TARGET_DELTA:g}, of the whole training or release."),
    )


def _cells(row: FrontierRow, first: FrontierRow) -> list[str | float | int | None]:
    accuracy = [_number(row.accuracy[mode]) for mode in ("plain", "one_view", "ten_views")]
    leaks = [_leak(row.leaks.get(name)) for name in ("recovery", "membership", "model", "update")]
    ratio = row.train_cpu_seconds / max(first.train_cpu_seconds, 1e-9)
    epsilon = "none" if row.epsilon is None else f"{row.epsilon:.2f}"
    return [row.name, *accuracy, *leaks, epsilon, f"{ratio:.1f}", f"{row.attack_cpu_seconds:.1f}"]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _leak(leak: Leak | None) -> str:
    if leak is None:
        return "–"
    interval = "" if leak.interval is None else f" ({leak.interval[0]:.2f} to {leak.interval[1]:.2f})"
    return f"{leak.value:.2f}{interval}, chance {leak.chance:.2f}"
