"""``instahide theory complete``: matrices from few entries, by depth and by nuclear norm."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..console import OutputFormat, progress_bar
from .shared import check_picture, finish, mistakes_in_our_form


class Experiment(StrEnum):
    """The published experiments."""

    rank5 = "rank5"
    rank10 = "rank10"
    sensing = "sensing"
    norm_blow_up = "norm-blow-up"
    dynamics = "dynamics"
    movielens = "movielens"


def complete(
    experiment: Annotated[
        Experiment, typer.Option(help="Which experiment; the list is above.", show_default=False)
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with u1.base and u1.test of MovieLens 100k (movielens).", metavar="DIR"),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Rows and columns.", show_default="100; sensing 50; dynamics 20")
    ] = None,
    count: Annotated[
        list[int] | None,
        typer.Option(
            help="Known entries, or measurements; may be repeated.", show_default="the published range"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Instances for each count.")] = 5,
    depth: Annotated[
        list[int] | None,
        typer.Option(help="Depth of the product; may be repeated.", show_default="2 3 4; movielens 2"),
    ] = None,
    scale: Annotated[float, typer.Option(help="Of the initialization.")] = 1e-4,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the picture (.png), or a page with picture and numbers (.html), here.", metavar="FILE"
        ),
    ] = None,
    format: Annotated[OutputFormat, typer.Option(help="Lines for people, or one JSON object.")] = (
        OutputFormat.text
    ),
) -> None:
    """Complete a matrix by gradient descent on a product of matrices.

    Descent on deep products finds matrices of low rank where the least
    nuclear norm does not (Arora, Cohen, Hu and Luo 2019).

    rank5, rank10: error against revealed entries, depth 2, 3, 4 and the
    certified nuclear norm. sensing: the same from Gaussian measurements.
    norm-blow-up: a problem whose norms diverge while its rank falls.
    dynamics: Theorem 3 along the flow, singular values over time. movielens:
    RMSE on ratings from a folder of yours (the licence forbids shipping them).

    At full size rank5 takes some minutes on one core; --count and --seeds
    make it smaller.

    Exit codes: 0 done · 2 wrong input · 130 interrupted, nothing written.

    Example:

        instahide theory complete --experiment rank5 --count 2000 --seeds 2 --out curve.png
    """
    check_picture(out)
    with (
        mistakes_in_our_form("`instahide theory complete --help` lists what each experiment takes"),
        progress_bar("computing") as progress,
    ):
        from theory_modules.matrix_completion_experiments import run_experiment

        done = 0

        def say(line: str) -> None:
            nonlocal done
            progress(done, text=f"{line}; parts done:")
            done += 1

        outcome = run_experiment(
            experiment.value,
            data=data,
            size=size,
            counts=count or None,
            seeds=seeds,
            depths=depth or None,
            scale=scale,
            say=say,
        )
    finish(format, outcome.lines, outcome.values, out=out, draw=outcome.draw)
