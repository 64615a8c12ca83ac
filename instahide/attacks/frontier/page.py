"""The frontier to look at: one table, one picture, and what the columns mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...atomic import atomic_write_text
from ...html_page import heading, page, paragraph, scatter_chart, table
from .defences import APPROACHES
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
        *_by_approach(rows),
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
        paragraph(
            f"Epsilon: of one image or of one whole site, as it says, at delta {TARGET_DELTA:g}, of the "
            "whole training or release. The two are not comparable: a site has many images."
        ),
        paragraph(
            "Recognition in the model is tried with shadow models trained under the same defence, or, where "
            "it says threshold, only by the size of the loss, a weaker attack: such a figure is the lower of "
            "two, and no proof that the defence does better than one tried with shadow models."
        ),
        paragraph(
            "A coordinator that adds the noise itself sees every site's update; noise for whole sites "
            "protects from those who get the models."
        ),
    )


def _by_approach(rows: Sequence[FrontierRow]) -> list[str]:
    """A table for each approach, under a sentence on what it promises and costs."""
    plain = next((row.train_cpu_seconds for row in rows if row.name == "plain"), None)
    parts = []
    for approach, words in APPROACHES.items():
        chosen = [row for row in rows if row.approach == approach]
        if chosen:
            cells = [_cells(row, plain) for row in chosen]
            parts += [heading(approach[0].upper() + approach[1:]), paragraph(words), table(COLUMNS, cells)]
    return parts


def _cells(row: FrontierRow, plain_seconds: float | None) -> list[str | float | int | None]:
    accuracy = [_number(row.accuracy[mode]) for mode in ("plain", "one_view", "ten_views")]
    leaks = [_leak(row.leaks.get(name)) for name in ("recovery", "membership", "model", "update")]
    ratio = "–" if not plain_seconds else f"{row.train_cpu_seconds / plain_seconds:.1f}"
    epsilon = "none" if row.epsilon is None else f"{row.epsilon:.2f}, one {row.unit}"
    return [row.name, *accuracy, *leaks, epsilon, ratio, f"{row.attack_cpu_seconds:.1f}"]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _leak(leak: Leak | None) -> str:
    if leak is None:
        return "–"
    interval = "" if leak.interval is None else f" ({leak.interval[0]:.2f} to {leak.interval[1]:.2f})"
    weaker = ", threshold" if "threshold" in leak.attack else ""
    return f"{leak.value:.2f}{interval}, chance {leak.chance:.2f}{weaker}"
