"""``instahide attack list``: which attacks there are, what each is given, what it answers."""

from __future__ import annotations

from dataclasses import asdict

import typer

from ..console import OutputFormat, print_json
from .shared import Format


def list_attacks(format: Format = OutputFormat.text) -> None:
    """List the attacks: the question each answers, what the attacker is given, and the paper.

    Exit codes: 0.

    Example:

        instahide attack list
    """
    from instahide.attacks.catalogue import CATALOGUE

    if format is OutputFormat.json:
        print_json([asdict(item) for item in CATALOGUE])
        return
    for item in CATALOGUE:
        typer.echo(f"{item.name}\n  {item.question}\n  sees    {item.sees}\n  source  {item.source}")
