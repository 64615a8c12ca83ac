"""``instahide theory``: what the papers behind the toolkit state, run and measured."""

from __future__ import annotations

import typer

from . import cntk, complete, exponential_lr, impute, ntk

app = typer.Typer(
    help="The theory back end: kernels, factorization, learning-rate schedules.", no_args_is_help=True
)


@app.callback()
def theory() -> None:
    """The theory back end: kernels, factorization, learning-rate schedules."""


app.command("cntk")(cntk.cntk)
app.command("complete")(complete.complete)
app.command("exp-lr")(exponential_lr.exponential_lr)
app.command("impute")(impute.impute)
app.command("ntk")(ntk.ntk)
