"""What the verbs share in front of people: output formats, tables, and the words for events."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

import typer


class OutputFormat(StrEnum):
    """How a verb prints its result."""

    text = "text"
    json = "json"


def print_json(value: Any) -> None:
    """One JSON document on standard output; nothing else goes there in this format."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def describe_event(event: dict[str, Any]) -> str | None:
    """An event of a run in words, or None for those that only machines need."""
    name = event["event"]
    site, number = event.get("site", "?"), event.get("round", "?")
    match name:
        case "waiting-for-sites":
            return f"waiting for sites ({event.get('online', '?')} of {event.get('needed', '?')} online)"
        case "run-resumed":
            return f"resumed after round {event.get('after-round')}"
        case "round-finished":
            sites = ", ".join(event.get("sites", []))
            accuracy = _accuracy(event.get("incoming"))
            return f"round {number} done with {sites}" + (
                f" · accuracy of the model it started from: {accuracy}" if accuracy else ""
            )
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
