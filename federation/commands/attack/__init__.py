"""``instahide attack``: measure what leaks, on your own release or your own settings."""

from __future__ import annotations

import typer

from . import (
    audits,
    challenge,
    curve,
    dp_audit,
    frontier,
    gram,
    listing,
    membership,
    model_membership,
    public_sources,
    published_2020,
    recovery,
    report,
    update_inversion,
)

app = typer.Typer(help="Attack encodings and updates; report what leaks.", no_args_is_help=True)
run_app = typer.Typer(help="Run one attack.", no_args_is_help=True)


@app.callback()
def attack() -> None:
    """Attack encodings and updates; report what leaks."""


@run_app.callback()
def run() -> None:
    """Run one attack; `instahide attack list` says which there are."""


app.add_typer(run_app, name="run")
app.add_typer(challenge.app, name="challenge")
app.command("curve")(curve.curve)
app.command("frontier")(frontier.frontier)
app.command("list")(listing.list_attacks)
app.command("report")(report.report)
run_app.command("gram")(gram.gram)
run_app.command("public-sources")(public_sources.public_sources)
run_app.command("membership")(membership.membership)
run_app.command("audits")(audits.audits)
run_app.command("update-inversion")(update_inversion.update_inversion)
run_app.command("model-membership")(model_membership.model_membership)
run_app.command("dp-audit")(dp_audit.dp_audit)
run_app.command("published-2020")(published_2020.published_2020)
run_app.command("recovery")(recovery.recovery)
