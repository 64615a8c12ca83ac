"""``instahide node``: make a hospital's node, join a federation, serve it, look at it."""

from __future__ import annotations

import typer

from . import node_plan
from .doctor import node_doctor
from .node_keys import init, join, request, rotate
from .node_privacy import privacy
from .start import node_start
from .status import node_status

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

app.command("init")(init)
app.command("join")(join)
app.command("start")(node_start)
app.command("request")(request)
app.command("rotate")(rotate)
app.command("privacy")(privacy)
app.command("doctor")(node_doctor)
app.add_typer(node_plan.app, name="plan")
app.command("status")(node_status)
