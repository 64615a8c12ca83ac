"""What the verbs share in front of people: output formats, progress, and the words for events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import typer

from instahide.errors import InstaHideError

LOG_SECONDS = 30.0
NO_LABELS = "put images in one folder per class, or labels into the file (y_train, or y)"

Progress = Callable[..., None]
"""Called as ``progress(done, total=None, text="")``; ``text`` replaces the words before the bar."""


class StoppedError(InstaHideError):
    """Ctrl-C, said with what is left behind and how to go on."""

    exit_code = 130


class OutputFormat(StrEnum):
    """How a verb prints its result."""

    text = "text"
    json = "json"


def print_json(value: Any) -> None:
    """One JSON document on standard output; nothing else goes there in this format."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def progress_bar(text: str) -> Iterator[Progress]:
    """A bar on stderr where somebody watches; in a pipe or a log, one line every half minute."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines_in_a_log(text)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(text, total=None)

        def progress(done: int, total: int | None = None, text: str = text) -> None:
            count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
            bar.update(task, completed=done, total=total, description=f"{text} {count}")

        yield progress


def _lines_in_a_log(first_text: str) -> Progress:
    last = time.monotonic()

    def progress(done: int, total: int | None = None, text: str = first_text) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
            typer.echo(f"{text} {count}", err=True)

    return progress


def describe_event(event: dict[str, Any]) -> str | None:
    """An event of a run in words, or None for those that only machines need."""
    name = event["event"]
    site, number = event.get("site", "?"), event.get("round", "?")
    match name:
        case "waiting-for-sites":
            absent = ", ".join(event.get("absent", []))
            here = ", ".join(event.get("present", [])) or "none"
            return f"waiting for sites; online: {here}" + (f"; absent: {absent}" if absent else "")
        case "waiting-for-approval":
            sites = ", ".join(event.get("sites", []))
            return (
                f"round {number} waits up to {event.get('seconds-left', 0):.0f} s until {sites} approved the "
                "plan: instahide node plan list NODE"
            )
        case "run-resumed":
            return f"resumed after round {event.get('after-round')}"
        case "round-finished":
            sites = ", ".join(event.get("sites", []))
            accuracy = _accuracy(event.get("incoming"))
            return f"round {number} done with {sites}" + (
                f" · accuracy of the model it started from: {accuracy}" if accuracy else ""
            )
        case "session-opened":
            sites = ", ".join(event.get("sites", []))
            digest = str(event.get("roster-sha256", ""))[:12]
            return f"secure aggregation over {sites} (roster {digest}): single updates stay hidden"
        case "round-failed":
            return f"round {number} failed: {event.get('reason', '')}"
        case "evaluation-finished":
            return f"last model measured: {_accuracy(event.get('metrics')) or 'no site answered'}"
        case "site-refused" | "site-rejected" | "site-failed" | "site-missing":
            verb = name.removeprefix("site-")
            return f"round {number}: {site} {verb}: {event.get('reason', '')}".rstrip(": ")
        case "checkpoint-corrupt":
            return f"checkpoint {event.get('file')} is damaged; an older one is used"
        case "run-failed":
            return f"run failed: {event.get('reason', '')}"
    return None


def _accuracy(metrics: dict[str, Any] | None) -> str:
    values = metrics or {}
    shown = [
        f"{label} {values[key]:.3f}"
        for label, key in (
            ("plain", "evaluate-accuracy-plain"),
            ("one view", "evaluate-accuracy-one-view"),
            ("ten views", "evaluate-accuracy-ten-views"),
        )
        if isinstance(values.get(key), int | float)
    ]
    return ", ".join(shown)
