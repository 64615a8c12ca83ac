"""``instahide node privacy``: what differential privacy a site has spent and what is left."""

from __future__ import annotations

from pathlib import Path

import typer

from .console import OutputFormat, print_json


def privacy(
    node: Path = typer.Argument(..., help="The node's folder.", show_default=False),
    output: OutputFormat = typer.Option(
        OutputFormat.text, "--format", help="text for people, json for programs."
    ),
) -> None:
    """Show how much of its differential-privacy budget this site has spent, run by run (exit 4 if damaged).

    Encodings and runs without differential privacy have no epsilon, and none is shown for them.

    Example: instahide node privacy st-mary/
    """
    from ..node_folder import NodeFolder
    from ..privacy_ledger import LEDGER_NAME, PrivacyLedger
    from ..site.policy import load_policy
    from ..site.privacy_report import in_words, privacy_report
    from ..site.run_history import RunHistory

    folder = NodeFolder(node.resolve())
    folder.check()
    path = folder.state / LEDGER_NAME
    entries = PrivacyLedger(path).entries() if path.exists() else ()
    report = privacy_report(entries, load_policy(folder.policy), RunHistory(folder.state).rounds_trained())
    if output is OutputFormat.json:
        print_json(report)
    else:
        typer.echo(in_words(report))
