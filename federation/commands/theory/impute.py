"""``instahide theory impute``: hospital tables with gaps, filled in six ways and trained on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import OutputFormat, progress_bar
from .shared import check_picture, finish, mistakes_in_our_form


def impute(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with a table of numbers for each hospital (.csv, .data) and columns.toml.",
            metavar="DIR",
            show_default=False,
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Random choices of hidden entries and test rows.")] = 5,
    hidden_fraction: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share of known entries that is hidden.")
    ] = 0.2,
    rounds: Annotated[int, typer.Option(min=1, help="Of federated averaging, two passes each.")] = 10,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Train on the completed tables, too.")
    ] = True,
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
    """Fill in hospital tables, and see whether the way matters.

    Known entries are hidden and guessed by the mean, five neighbours,
    iterative regression, soft-impute and deep matrix factorization, at each
    hospital from its own rows; then by one factorization that all hospitals
    make together without showing a row, and one of all rows pooled, which
    only shows what that would be worth. Then the MLP is trained on each
    hospital's completed rows alone and on all hospitals' by federated
    averaging, in this process, and asked about rows set aside.

    columns.toml says what the columns are; for the four processed
    heart-disease tables of the UCI repository it is built in. Rows are never
    encoded: so few numbers cannot be hidden.

    The heart-disease tables (920 rows) take some minutes on one core.

    Exit codes: 0 done · 2 wrong input · 130 interrupted, nothing written.

    Example:

        instahide theory impute --data heart_disease/ --out imputation.png
    """
    check_picture(out)
    with (
        mistakes_in_our_form("`instahide theory impute --help` lists the options"),
        progress_bar("hiding and guessing") as progress,
    ):
        from theory_modules.imputation_comparison import imputation_errors, lines

        from ... import table_study

        tables = table_study.read_hospitals(data)
        errors = {}
        numbers = {name: table.values for name, table in tables.items()}
        for name, values in numbers.items():
            errors[name] = imputation_errors(
                values,
                seeds=range(seeds),
                hidden_fraction=hidden_fraction,
                progress=partial(progress, text=f"guessing, {name}"),
            )
        together = table_study.imputation_together(
            numbers,
            seeds=range(seeds),
            hidden_fraction=hidden_fraction,
            progress=partial(progress, text="guessing together"),
        )
        study = None
        if train:
            study = table_study.run_study(
                tables,
                seeds=range(seeds),
                settings=table_study.StudySettings(num_rounds=rounds),
                progress=lambda done, total: progress(done, total, "training, alone and federated"),
            )
    shown: list[str] = []
    for name, found in errors.items():
        shown += [f"{name}: error on hidden entries, in deviations of a column", *_indented(lines(found))]
        shown += ["  together, on the same entries", *_indented(lines(together[name][1:]))]
    values_out: dict[str, Any] = {
        "imputation": {name: [error.to_dict() for error in found] for name, found in errors.items()},
        "together": {name: [error.to_dict() for error in found] for name, found in together.items()},
        "training": None if study is None else study.to_dict(),
    }
    if study is not None:
        shown += ["accuracy on test rows of all hospitals", *_indented(study.lines())]
    finish(
        format,
        shown,
        values_out,
        out=out,
        draw=lambda path: table_study.draw(
            {name: [*errors[name], *together[name][2:]] for name in errors}, study, path
        ),
    )


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
