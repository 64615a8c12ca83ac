"""``instahide node plan``: read the plans of runs, and decide which of them this site serves."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from instahide.errors import InvalidInputError

from .console import OutputFormat, print_json

if TYPE_CHECKING:
    from ..node_folder import NodeFolder
    from ..plan import Plan
    from ..site.plans import PlanBook, PlanEntry

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Decide which runs this site serves. A plan is the hash of the app bundle and every setting of a "
        "run; a run with one setting changed is another plan, and waits.\n\n"
        "    instahide node plan list st-mary/\n"
        "    instahide node plan show st-mary/ 3f2a91c07b1d\n"
        "    instahide node plan approve st-mary/ 3f2a91c07b1d"
    ),
)

NODE = typer.Argument(..., help="The node's folder.", show_default=False)
HASH = typer.Argument(
    "", help="First digits of the plan's hash (default: the one that waits).", show_default=False
)
FILE = typer.Option(
    None,
    "--file",
    help="A plan file from the coordinator, before the run has asked; nothing is written down by reading it.",
    show_default=False,
)
BY = typer.Option("", help="Who decides, for the audit log (default: this user of the machine).")
FORMAT = typer.Option(OutputFormat.text, "--format", help="text for people, json for programs.")


@app.command("list")
def list_plans(node: Path = NODE, output: OutputFormat = FORMAT) -> None:
    """List the plans this site has seen, the latest first, and what was decided about each.

    Example: instahide node plan list st-mary/
    """
    from ..plan import SHORT

    _, book = _open(node)
    rows = [_summary(entry) for entry in book.entries()]
    if output is OutputFormat.json:
        print_json(rows)
        return
    if not rows:
        typer.echo("no plan has been seen yet")
        return
    shown = [
        {**row, "sha256": row["sha256"][:SHORT], "seen": _to_the_second(row["seen"]),
         "decided": _to_the_second(row["decided"])}
        for row in rows
    ]  # fmt: skip
    _print_table([list(map(str, row.values())) for row in shown], columns=list(rows[0]))


@app.command("show")
def show(
    node: Path = NODE, plan: str = HASH, file: Path | None = FILE, output: OutputFormat = FORMAT
) -> None:
    """Show a plan in full: every entry, its value, what it means.

    Example: instahide node plan show st-mary/ --file trial-1.plan.json
    """
    from ..config import describe_settings

    _, book = _open(node)
    entry = _entry(book, plan, file)
    if output is OutputFormat.json:
        print_json({**_summary(entry), "plan": entry.plan.to_mapping()})
        return
    meanings = {key: meaning for key, _, _, meaning in describe_settings()}
    table = entry.plan.to_mapping()
    values = {key: value for key, value in table.items() if key != "settings"} | table["settings"]
    _print_table(
        [[key, str(value), meanings.get(key, "")] for key, value in values.items()],
        columns=["entry", "value", "meaning"],
    )
    decided = f"{entry.status} by {entry.by} at {entry.decided_at}" if entry.by else entry.status
    typer.echo(f"plan {entry.plan.sha256}: {decided}")


@app.command("diff")
def diff(
    node: Path = NODE, plan: str = HASH, file: Path | None = FILE, output: OutputFormat = FORMAT
) -> None:
    """Compare a plan with the one this site approved last.

    Example: instahide node plan diff st-mary/ 3f2a91c07b1d
    """
    _, book = _open(node)
    entry = _entry(book, plan, file)
    before = book.last_approved(other_than=entry.plan)
    if before is None:
        raise InvalidInputError(
            "no other plan was approved yet",
            hint=f"instahide node plan show {node} {plan if file is None else f'--file {file}'}".rstrip(),
        )
    changed = before.plan.differences(entry.plan)
    if output is OutputFormat.json:
        print_json(
            {
                "approved": before.plan.sha256,
                "plan": entry.plan.sha256,
                "changed": {key: {"approved": old, "plan": new} for key, old, new in changed},
            }
        )
        return
    _print_table(
        [[key, str(old), str(new)] for key, old, new in changed],
        columns=["entry", f"approved {before.plan.short}", f"plan {entry.plan.short}"],
    )


@app.command("approve")
def approve(
    node: Path = NODE,
    plan: str = HASH,
    file: Path | None = FILE,
    by: str = BY,
    output: OutputFormat = FORMAT,
) -> None:
    """Approve a plan: from now on this site serves its run, within policy.toml.

    Example: instahide node plan approve st-mary/ --file trial-1.plan.json
    """
    from ..site.plans import APPROVED

    folder, book = _open(node)
    _decide(folder, book, _entry(book, plan, file).plan, APPROVED, by, output)


@app.command("reject")
def reject(node: Path = NODE, plan: str = HASH, by: str = BY, output: OutputFormat = FORMAT) -> None:
    """Reject a plan, or take an approval back: its requests are refused at once.

    Example: instahide node plan reject st-mary/ 3f2a91c07b1d
    """
    from ..site.plans import REJECTED

    folder, book = _open(node)
    _decide(folder, book, book.find(plan).plan, REJECTED, by, output)


def _open(node: Path) -> tuple[NodeFolder, PlanBook]:
    from ..node_folder import NodeFolder
    from ..site.plans import PlanBook

    folder = NodeFolder(node.resolve())
    folder.check()
    return folder, PlanBook(folder.state)


def _entry(book: PlanBook, plan: str, file: Path | None) -> PlanEntry:
    """The plan of a file, with what was decided about it here if it is known; else the one of the book."""
    from ..plan import read_plan
    from ..site.plans import PlanEntry

    if file is None:
        return book.find(plan)
    read = read_plan(file)
    if not read.sha256.startswith(plan.lower()):
        raise InvalidInputError(
            f"{file} holds the plan {read.short}, not {plan!r:.80}", hint="ask for the right file"
        )
    return book.find(read.sha256) if book.knows(read) else PlanEntry(plan=read, seen_at="")


def _decide(
    folder: NodeFolder, book: PlanBook, plan: Plan, decision: str, by: str, output: OutputFormat
) -> None:
    from ..node_plans import decide

    entry = decide(folder, book, plan, decision, by=by or _user())
    if output is OutputFormat.json:
        print_json(_summary(entry))
        return
    typer.echo(f"plan {entry.plan.short} of run {entry.plan.run_name}: {entry.status} by {entry.by}")


def _user() -> str:
    """This user of the machine, by name where the machine has names."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _summary(entry: PlanEntry) -> dict[str, Any]:
    return {
        "sha256": entry.plan.sha256,
        "run": entry.plan.run_name,
        "status": entry.status,
        "seen": entry.seen_at,
        "by": entry.by,
        "decided": entry.decided_at,
    }


def _to_the_second(stamp: str) -> str:
    """2026-01-31T12:00:00.000000Z as people read it."""
    return stamp.split(".")[0].replace("T", " ")


def _print_table(rows: list[list[str]], *, columns: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")  # a hash is shown whole or not at all
    for row in rows:
        table.add_row(*map(Text, row))  # what a coordinator wrote is no markup
    Console().print(table)
