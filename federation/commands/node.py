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


@app.command("init")
def init(
    node: Path = NODE,
    name: str = typer.Option(..., help="Short name of the hospital, as others will see it."),
    data: Path = typer.Option(..., help="Training images: a folder or file `dataset inspect` can read."),
    test: Path | None = typer.Option(
        None, help="Test images (default: the file's own test split, or a held-out part)."
    ),
    public: Path | None = typer.Option(
        None, help="Public images to mix with (default: private images only)."
    ),
    class_names: list[str] = typer.Option(
        [], "--class", help="The study's class names in order, where these images lack some; repeat."
    ),
    threads: int = typer.Option(2, min=1, help="Processor threads for training."),
    output: OutputFormat = FORMAT,
) -> None:
    """Make the node's key, policy and settings, and the request file for the coordinator.

    The private key is made here and stays here. Read policy.toml before you
    join: it decides what a coordinator may ask of this site.

    Example: instahide node init st-mary/ --name st-mary --data scans/
    """
    from ..node_folder import create_node

    folder, request, path = create_node(
        node,
        name=name,
        data=data,
        test_data=test,
        public_data=public,
        class_names=class_names,
        threads=threads,
    )
    if output is OutputFormat.json:
        print_json(
            {
                "node": str(folder.path),
                "request": str(path),
                "fingerprint": request.fingerprint,
                "identity": request.identity,
            }
        )
        return
    typer.echo(f"{name}: {request.num_examples:,} training and {request.evaluate_num_examples:,} test images")
    typer.echo(f"key fingerprint (read it out to the coordinator): {request.fingerprint}")
    typer.echo(f"identity key fingerprint (read it out as well):   {request.identity}")
    typer.echo(f"send {path} to the coordinator; read and edit {folder.policy}")


@app.command("join")
def join(
    node: Path = NODE,
    answer: Path = typer.Argument(..., help="NAME.join.json from the coordinator.", show_default=False),
    output: OutputFormat = FORMAT,
) -> None:
    """Take in the coordinator's answer: where it is and which certificate authority to trust.

    Example: instahide node join st-mary/ st-mary.join.json
    """
    from ..identity import identity_fingerprint
    from ..joining import read_answer
    from ..node_folder import NodeFolder
    from ..node_folder import join as take_in
    from ..provisioning import certificate_fingerprint

    folder = NodeFolder(node.resolve())
    settings = take_in(folder, read_answer(answer))
    facts = {
        "coordinator": settings.coordinator,
        "authority-sha256": certificate_fingerprint(folder.authority),
        "coordinator-identity": identity_fingerprint(folder.coordinator_key.read_text(encoding="ascii")),
    }
    if output is OutputFormat.json:
        print_json(facts)
        return
    typer.echo(f"joined: the coordinator is {settings.coordinator}")
    typer.echo(f"compare its authority fingerprint by telephone: {facts['authority-sha256']}")
    typer.echo(f"and its identity key: {facts['coordinator-identity']}")
    typer.echo(f"next: instahide node start {node}, and instahide node plan list {node} for each run")


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
