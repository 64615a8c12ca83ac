"""A status in a terminal: tables by rich, in which nothing from outside is taken for markup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .audits import latest_findings
from .node_status import LISTENING, NodeStatus
from .page_parts import ago, days_in_words
from .run_progress import INFERENCES, Trouble, parse_time
from .study_status import UP, RunStatus, StudyStatus

MOST_RUNS: Final = 10
MOST_TROUBLES: Final = 8
_COLOURS: Final = {
    "online": "green",
    "up": "green",
    "listening": "green",
    "connected": "green",
    "finished": "green",
    "running": "cyan",
    "offline": "yellow",
    "interrupted": "yellow",
    "retrying": "yellow",
    "down": "bold red",
    "failed": "bold red",
}


def study_in_terminal(status: StudyStatus) -> RenderableType:
    """The whole study in one screen."""
    online = status.count_online()
    words = "" if online is None else f"; {online} of {len(status.sites)} hospitals online"
    head = Text.assemble("coordinator ", status.address, ": ", _coloured(status.coordinator), words)
    if status.coordinator != UP and status.down_reason:
        head.append(f" ({status.down_reason})")
    sites = [
        [site.name, site.status, f"{site.images:,}", _since(site.last_answer, status) or "never"]
        for site in status.sites
    ]
    certificates = [[one.name, days_in_words(one.days_left(status.made_at))] for one in status.certificates]
    parts: list[RenderableType] = [
        head,
        *(Text(note, style="yellow") for note in status.notes),
        _table("hospitals", ["name", "status", "images", "last answer"], sites),
        _table(
            "runs",
            ["name", "state", "rounds", "accuracy", "last event"],
            [_run(run, status) for run in status.runs[-MOST_RUNS:]],
        ),
    ]
    for run in status.runs[-1:]:
        parts += _about_the_last(run)
    parts += _troubles(status.troubles)
    return Group(*parts, _table("certificates", ["name", "left"], certificates))


def node_in_terminal(status: NodeStatus) -> RenderableType:
    """The node in one screen."""
    joined = "yes" if status.joined else "no"
    parts: list[RenderableType] = [
        Text.assemble("site worker: ", _coloured(status.worker), f"; joined a federation: {joined}"),
        Text.assemble("connection to the coordinator: ", _coloured(status.connection.state)),
    ]
    if status.connection.reason:
        parts.append(Text(f"  {status.connection.reason}"))
    parts += [Text(note, style="yellow") for note in status.notes]
    parts += [Text(f"a plan waits: {sha256}", style="yellow") for sha256 in status.waiting_plans]
    rows = [
        [run.name, str(run.rounds), str(run.measurements), str(run.last_round)]
        for run in list(status.records.runs.values())[-MOST_RUNS:]
    ]
    parts.append(_table("runs served", ["run", "updates sent", "models measured", "last round"], rows))
    if counts := status.records.exposures:
        parts.append(
            Text(
                f"behind the updates that left: {counts.get('own', 0):,} encodings of own images, "
                f"at most {counts.get('largest', 0)} of one"
            )
        )
    if (report := status.privacy) is not None:
        spent = report["epsilon-spent"]
        shown = "above 30, which promises nothing" if spent is None else f"{spent:.3g}"
        parts.append(
            Text(f"differential privacy spent over all runs: epsilon {shown} at {report['delta']:g}")
        )
    parts += _troubles(list(status.records.troubles)[::-1])
    if status.worker != LISTENING:
        parts.append(Text("the node is down: what is above is what its files say"))
    return Group(*parts)


def print_status(shown: RenderableType) -> None:
    """Once, to standard output; as wide as it needs where nobody's screen limits it."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 160))
    console.print(shown)


def _run(run: RunStatus, status: StudyStatus) -> list[str]:
    progress = run.progress
    planned = f" of {progress.planned_rounds}" if progress.planned_rounds else ""
    accuracy = ", ".join(
        f"{value:.3f} {mode}" for mode in INFERENCES for _, value in progress.curve(mode)[-1:]
    )
    since = _since(progress.last_event_at, status)
    return [progress.name, run.state, f"{progress.last_round}{planned}", accuracy, since]


def _about_the_last(run: RunStatus) -> list[RenderableType]:
    name = run.progress.name
    parts: list[RenderableType] = []
    if run.progress.waiting_for:
        parts.append(Text(f"{name} waits for {run.progress.waiting_for}"))
    if run.progress.end_reason:
        parts.append(Text(f"{name} ended: {run.progress.end_reason}", style="yellow"))
    for row in run.epsilon:
        shown = row.problem or ("above 30" if row.epsilon is None else f"{row.epsilon:.3g}")
        parts.append(Text(f"{name}, {row.whose}: epsilon {shown} at delta {row.delta:g} for {row.protects}"))
    for finding in latest_findings(run.findings):
        where = "" if finding.round is None else f" in round {finding.round}"
        figure = "not measured" if finding.figure is None else f"{finding.figure:.3f}"
        parts.append(Text(f"{name}{where}: {finding.attack}, {finding.measure} {figure}"))
    return parts


def _troubles(troubles: Sequence[Trouble]) -> list[RenderableType]:
    rows = [
        [one.time[:19], f"{one.run} {one.round}", one.site, f"{one.what} {one.kind}".strip(), one.reason]
        for one in troubles[:MOST_TROUBLES]
    ]
    columns = ["time (UTC)", "run, round", "hospital", "what", "reason"]
    return [_table("refusals and failures, the newest first", columns, rows)] if rows else []


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns if rows else ("none yet",):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_coloured(value) for value in row))
    return table


def _coloured(text: str) -> Text:
    return Text(text, style=_COLOURS.get(text, ""))


def _since(stamp: str, status: StudyStatus) -> str:
    moment = parse_time(stamp)
    return "" if moment is None else ago(moment, status.made_at)
