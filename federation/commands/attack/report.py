"""``instahide attack report``: one page from a folder of results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import OutputFormat, print_json
from .shared import Format


def report(
    folder: Annotated[Path, typer.Argument(help="Folder with results of `attack run --out`.", metavar="DIR")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write the page to.", show_default="DIR itself")
    ] = None,
    format: Format = OutputFormat.text,
) -> None:
    """Write index.html and report.json from every attack result below a folder.

    The page needs no network and no script; it names what was not tried, too.

    Exit codes: 0 written · 2 no result in the folder · 4 a damaged result.

    Example:

        instahide attack report audit/
    """
    from instahide.attacks.report import write_report

    summary = write_report(folder, out)
    if format is OutputFormat.json:
        print_json(summary)
        return
    for threat in summary["threats"].values():
        if not threat["tried"]:
            typer.echo(f"{threat['title']}: not tried")
        for result in threat["results"]:
            typer.echo(f"{threat['title']}: {result['verdict'] or result['name']}")
    typer.echo(f"written to {(out or folder) / 'index.html'}")
