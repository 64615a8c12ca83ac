"""``instahide coordinator status`` and ``instahide node status``: once, or live until Ctrl-C."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from instahide.errors import FederationError, InstaHideError, RefusedError

from .console import OutputFormat, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..status.study_status import StudyStatus

FORMAT = typer.Option(OutputFormat.text, "--format", help="text for people, json for programs.")
WATCH = typer.Option(
    False, "--watch", help="Show it again and again until Ctrl-C; in JSON one line each time."
)
EVERY = typer.Option(2.0, min=0.2, help="Seconds between two looks with --watch.")

DOWN_IN_WORDS = "the coordinator is down: "

Look = Callable[[], tuple["RenderableType", dict[str, Any], InstaHideError | None]]
"""One look: for a terminal, as JSON values, and what is wrong, if anything is."""


def coordinator_status(
    study: Path = typer.Argument(..., help="The study's folder.", show_default=False),
    watch: bool = WATCH,
    every: float = EVERY,
    output: OutputFormat = FORMAT,
) -> None:
    """Show the study: who is connected, runs, accuracies, refusals, certificates. Works when it is down.

    When the coordinator is down, what the study's files know is shown all the
    same, and who is connected is "unknown". Exit code 0 if the coordinator is up,
    5 if it is down, 3 if something else answers in its place, 2 if the folder
    holds no study. --watch ends with Ctrl-C and exit code 0.

    Example: instahide coordinator status study/ --watch
    """
    from ..status.study_status import DOWN, UP, Presence, StudyWatch
    from ..status.terminal import study_in_terminal
    from ..study import load_study

    made = load_study(study)
    files = StudyWatch(made)

    def look() -> tuple[RenderableType, dict[str, Any], InstaHideError | None]:
        presence, problem = _who_is_connected(made.path)
        files.read_events()
        status: StudyStatus = files.status(
            datetime.now(UTC),
            coordinator=UP if problem is None else DOWN,
            presence=presence,
            down_reason="" if problem is None else problem.message.removeprefix(DOWN_IN_WORDS),
        )
        return study_in_terminal(status), status.to_mapping(), problem

    def _who_is_connected(path: Path) -> tuple[Presence | None, InstaHideError | None]:
        from . import coordinator

        try:
            with coordinator._control(path) as control:
                return {node.node_id: node.status for node in control.list_nodes()}, None
        except RefusedError as error:  # another program answers: not the same as nobody
            return None, error
        except InstaHideError as error:
            hint = f"start it: instahide coordinator start {study}"
            return None, FederationError(DOWN_IN_WORDS + error.message, hint=hint)

    _show(look, watch, every, output)


def node_status(
    node: Path = typer.Argument(..., help="The node's folder.", show_default=False),
    watch: bool = WATCH,
    every: float = EVERY,
    output: OutputFormat = FORMAT,
) -> None:
    """Show this node: worker, connection, runs served, refusals, exposures. Works when it is down.

    Exit code 0 if the site worker listens, 5 if it is down (what the node's files
    know is shown all the same), 2 if the folder holds no node. --watch ends with
    Ctrl-C and exit code 0.

    Example: instahide node status st-mary/ --watch
    """
    from ..node_folder import NodeFolder
    from ..status.node_status import LISTENING, NodeWatch
    from ..status.terminal import node_in_terminal

    folder = NodeFolder(node.resolve())
    folder.check()
    files = NodeWatch(folder)

    def look() -> tuple[RenderableType, dict[str, Any], InstaHideError | None]:
        status = files.status(datetime.now(UTC))
        problem = None
        if status.worker != LISTENING:
            problem = FederationError("the site worker is down", hint=f"instahide node start {node}")
        return node_in_terminal(status), status.to_mapping(), problem

    _show(look, watch, every, output)


def _show(look: Look, watch: bool, every: float, output: OutputFormat) -> None:
    from ..status.terminal import print_status

    if watch:
        try:
            _watch(look, every, output)
        except KeyboardInterrupt:  # how a watch ends
            return
    shown, values, problem = look()
    if output is OutputFormat.json:
        print_json(values)
    else:
        print_status(shown)
    if problem is not None:
        raise problem


def _watch(look: Look, every: float, output: OutputFormat) -> None:
    """Never returns; Ctrl-C ends it."""
    from rich.console import Console
    from rich.live import Live

    from ..status.terminal import print_status

    if output is OutputFormat.text and Console().is_terminal:
        with Live(look()[0], auto_refresh=False, vertical_overflow="visible") as live:
            while True:
                time.sleep(every)
                live.update(look()[0], refresh=True)
    while True:
        shown, values, _ = look()
        if output is OutputFormat.json:
            print(json.dumps(values, ensure_ascii=False), flush=True)
        else:
            print_status(shown)
        time.sleep(every)
