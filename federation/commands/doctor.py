"""``instahide node doctor`` and ``instahide coordinator doctor``: look at everything, change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from instahide.errors import FederationError

from .console import OutputFormat, print_json

if TYPE_CHECKING:
    from ..doctor import Check, Outcome, Report
    from ..node_folder import NodeFolder

FORMAT = typer.Option(OutputFormat.text, "--format", help="text for people, json for programs.")
WAIT = typer.Option(8.0, min=1.0, help="Seconds after which checks that hang are given up.")


def node_doctor(
    node: Path = typer.Argument(..., help="The node's folder.", show_default=False),
    data: bool = typer.Option(True, "--data/--no-data", help="Read the images once, as the worker would."),
    dry_run: bool = typer.Option(
        False,
        "--dry-run",
        help="Serve a round on made-up images, too: up to a minute, nothing is charged.",
    ),
    wait: float = WAIT,
    output: OutputFormat = FORMAT,
) -> None:
    """Check this node: files, policy, images, machine, and the way to the coordinator. Nothing is changed.

    Every check says what it saw; where not all is well, a `fix` line says what
    to do. It needs neither the worker nor the coordinator to be up. Exit code 0
    if no check failed, else 5; 2 if the folder holds no node.

    With --dry-run a second site worker serves one round on made-up images of this
    site's shape: its policy, encoding, training and audit log, with stand-ins for
    the other sites. It has a temporary folder of its own; nothing of the site's
    ledgers, plans or audit log is touched.

    Example: instahide node doctor st-mary/ --dry-run
    """
    from ..doctor.node import node_checks
    from ..node_folder import NodeFolder

    folder = NodeFolder(node.resolve())
    checks = node_checks(folder, read_data=data)
    _examine(checks, wait, output, more=(lambda: _dry_run(folder, wait)) if dry_run else None)


def _dry_run(folder: NodeFolder, wait: float) -> list[tuple[str, Outcome]]:
    from ..doctor.dry_run import SECONDS
    from ..doctor.dry_run import dry_run as carry_out

    return carry_out(folder, within=max(SECONDS, wait))


def coordinator_doctor(
    study: Path = typer.Argument(..., help="The study's folder.", show_default=False),
    wait: float = WAIT,
    output: OutputFormat = FORMAT,
) -> None:
    """Check the coordinator: certificates, keys, ports, roster and the machine. Nothing is changed.

    Every check says what it saw; where not all is well, a `fix` line says what
    to do. The coordinator may be up or down. Exit code 0 if no check failed,
    else 5; 2 if the folder holds no study.

    Example: instahide coordinator doctor study/
    """
    from ..doctor.coordinator import coordinator_checks
    from ..study import load_study

    _examine(coordinator_checks(load_study(study)), wait, output)


def _examine(
    checks: list[Check],
    wait: float,
    output: OutputFormat,
    *,
    more: Callable[[], list[tuple[str, Outcome]]] | None = None,
) -> None:
    """Run the checks, then ``more``; show them, and fail as the federation would if one failed."""
    from ..doctor import Report, State, run_checks

    report = run_checks(checks, within=wait)
    if more is not None:
        report = Report((*report.rows, *more()))
    problems = report.names(State.failed)
    if output is OutputFormat.json:
        print_json({"ok": not problems, "checks": report.to_list()})
    else:
        _show(report)
    if problems:
        count = f"{len(problems)} of {len(report.rows)} checks failed"
        raise FederationError(f"{count}: {', '.join(problems)}", hint="the fix lines above say what to do")


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.text import Text

    from ..doctor import State

    colours = {State.ok: "green", State.warning: "yellow", State.failed: "bold red", State.skipped: "dim"}
    width = max(len(name) for name, _ in report.rows)
    console = Console(highlight=False, soft_wrap=True)
    for name, outcome in report.rows:
        line = Text(f"{outcome.state.value:<8}", style=colours[outcome.state])
        console.print(line + Text(f"{name:<{width}}  {outcome.seen}", style="default"))
        if outcome.fix:
            console.print(Text(f"{'':8}{'':<{width}}  fix: {outcome.fix}", style="default"))
