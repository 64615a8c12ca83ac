"""``instahide node``: make a hospital's node, join a federation, serve it, look at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from instahide.errors import FederationError

from . import node_plan
from .console import OutputFormat, print_json
from .doctor import node_doctor
from .node_keys import init, join, request, rotate
from .node_privacy import privacy

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Run a hospital's node.\n\n"
        "    instahide node init st-mary/ --name st-mary --data scans/ --public patches/\n"
        "    (send st-mary/st-mary.request.json to the coordinator, receive st-mary.join.json)\n"
        "    instahide node join st-mary/ st-mary.join.json\n"
        "    instahide node start st-mary/"
    ),
)

NODE = typer.Argument(..., help="The node's folder.", show_default=False)
FORMAT = typer.Option(OutputFormat.text, "--format", help="text for people, json for programs.")

app.command("init")(init)
app.command("join")(join)


@app.command("start")
def start(
    node: Path = NODE,
    accept_changed_data: bool = typer.Option(
        False, "--accept-changed-data", help="Serve although the images are not those of the last start."
    ),
) -> None:
    """Serve the federation in the foreground, until Ctrl-C: site worker and node, restarted if they fall.

    Example: instahide node start st-mary/
    """
    from ..flower_processes.node import is_connected, supervised_node
    from ..node_folder import NodeFolder, relay_process, start_worker
    from ..plan import SHORT
    from ..site.plans import PlanBook
    from .coordinator import stop_signal

    folder = NodeFolder(node.resolve())
    relay = relay_process(folder)
    typer.echo("starting the site worker (reads the images once) ...")
    worker = start_worker(folder, accept_changed_data=accept_changed_data)
    typer.echo("site worker ready; connecting to the coordinator; Ctrl-C stops")

    told = False  # that the coordinator has admitted this start of the node

    def report(status: int, reason: str | None, wait: float) -> None:
        nonlocal told
        told = False
        typer.echo(
            f"node ended (status {status}): {reason or 'see state/node.log'}; again in {wait:g} s", err=True
        )

    book, announced = PlanBook(folder.state), set[str]()
    stop = stop_signal()
    with supervised_node(relay, on_exit=report) as supervised:
        try:
            while not stop.wait(1.0):
                if not told and relay.is_running and is_connected(relay):
                    told = True
                    typer.echo("connected: this node serves the federation")
                for waiting in sorted(book.pending() - announced):
                    announced.add(waiting)
                    typer.echo(f"a plan waits: instahide node plan show {node} {waiting[:SHORT]}")
                if not worker.is_running:
                    typer.echo("the site worker ended; starting it again", err=True)
                    worker = start_worker(folder)
        finally:
            supervised.stop()
            worker.stop()
            folder.ready_file.unlink(missing_ok=True)
    typer.echo("stopped")


app.command("request")(request)
app.command("rotate")(rotate)
app.command("privacy")(privacy)
app.command("doctor")(node_doctor)
app.add_typer(node_plan.app, name="plan")


@app.command("status")
def status(node: Path = NODE, output: OutputFormat = FORMAT) -> None:
    """Show whether the site worker listens and whether this node has joined (exit 5 if it is down).

    Example: instahide node status st-mary/
    """
    from ..node_folder import NodeFolder, worker_listens

    folder = NodeFolder(node.resolve())
    folder.check()
    alive = worker_listens(folder)
    ready: dict[str, Any] = json.loads(folder.ready_file.read_text()) if folder.ready_file.exists() else {}
    facts = {
        "worker": "listening" if alive else "down",
        "joined": folder.node_config.exists(),
        "ready": ready,
    }
    if output is OutputFormat.json:
        print_json(facts)
    else:
        typer.echo(
            f"site worker: {facts['worker']}; joined a federation: {'yes' if facts['joined'] else 'no'}"
        )
    if not alive:
        raise FederationError("the site worker is down", hint=f"instahide node start {node}")
