"""``instahide explain``: what is protected from whom, what is not, and what an exit code means."""

from __future__ import annotations

import shutil
from enum import StrEnum

import typer

from .console import print_json


class ExplainFormat(StrEnum):
    """How an explanation is printed."""

    text = "text"
    markdown = "markdown"
    json = "json"


def explain(
    topic: str = typer.Argument("overview", help="A defence, somebody to fear, or an exit code; see below."),
    format: ExplainFormat = typer.Option(
        ExplainFormat.text, help="text for people, markdown for a page of your own, json for programs."
    ),
) -> None:
    """Say what this toolkit protects against and what not, with figures.

    Without TOPIC: who could learn what, in one list, and all topics. A defence
    (instahide, secure-aggregation, differential-privacy, robust-rules, approval,
    keys-and-tls) or somebody to fear (outsider, partner, coordinator,
    malicious-site, network, disk, model) shows what holds, what does not, what
    was measured, the command that measures it on your own settings, and the
    setting that changes it. exit-codes and exit-0 to exit-130 explain how a
    command ended.

    Exit codes: 0 shown · 2 no such topic.

    Examples:

        instahide explain

        instahide explain secure-aggregation

        instahide explain exit-3 --format markdown
    """
    from ..explanation_text import as_facts, as_markdown, as_text
    from ..explanations import explain as look_up

    found = look_up(topic)
    if format is ExplainFormat.json:
        print_json(as_facts(found))
    elif format is ExplainFormat.markdown:
        typer.echo(as_markdown(found))
    else:
        typer.echo(as_text(found, min(shutil.get_terminal_size((100, 24)).columns, 110)))
