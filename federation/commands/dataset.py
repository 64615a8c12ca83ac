"""``instahide dataset``: look at a data set before anything is done with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instahide.errors import IntegrityError

from .console import OutputFormat, print_json, progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from instahide.dataset_report import DatasetReport

app = typer.Typer(help="Look at a data set before it is encoded.", no_args_is_help=True)

SHOWN = 10


@app.callback()
def dataset() -> None:
    """Look at a data set before it is encoded."""


@app.command("inspect")
def inspect(
    path: Annotated[
        Path, typer.Argument(help="Folder, .nii, .nii.gz, .npz, .npy, .csv, idx or CIFAR files.")
    ],
    output: Annotated[
        OutputFormat, typer.Option("--format", help="Tables for people, or one JSON object.")
    ] = OutputFormat.text,
    max_bad_fraction: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of unusable files that is still fine.")
    ] = 0.01,
) -> None:
    """Count images, classes and sizes; find duplicates, unreadable files and leaks between splits.

    Volumes (NIfTI, DICOM series) are counted by slices; a file volumes.toml in the folder says which
    slices to take and under which window.

    Nothing is changed, and no subject identifier is printed: only how many there are.

    Exit code: 0 fine; 2 wrong path or unknown format; 3 a size above a cap or a path out of the
    folder; 4 a corrupt file, leaks between splits, or too many unusable files.

    Example: instahide dataset inspect chest/ --format json
    """
    from instahide.dataset_report import inspect_dataset

    with progress_bar("looking at images") as progress:
        report = inspect_dataset(path, on_progress=progress)
    too_many_bad = report.bad_fraction > max_bad_fraction
    if output is OutputFormat.json:
        verdict = {"too_many_unreadable": too_many_bad, "ok": not (too_many_bad or report.has_leaks)}
        print_json({**report.to_dict(), **verdict})
    else:
        _print(report)
    if report.has_leaks:
        raise IntegrityError(
            f"{path} has the same picture or subject in two splits",
            hint="keep each in one split: else every accuracy looks better than it is",
        )
    if too_many_bad:
        raise IntegrityError(
            f"{report.bad_fraction:.1%} of the files in {path} cannot be used",
            hint="mend or remove them, or allow more with --max-bad-fraction",
        )


def _print(report: DatasetReport) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    _print_facts(report, console)
    _print_classes(report, console)
    _print_groups("same picture in two splits (leak)", report.duplicates_across, console)
    _print_groups("same picture twice in a split", report.duplicates_within, console)
    _print_groups("same picture, two labels", report.label_conflicts, console)
    _print_groups("nearly constant pictures", [(name,) for name in report.near_constant], console)
    _print_groups(
        "files that cannot be used", [(f"{file.name}: {file.reason}",) for file in report.unreadable], console
    )
    if report.subjects_in_two_splits:
        console.print(f"[red]subjects in two splits (leak): {report.subjects_in_two_splits}[/red]")
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    if len(report.splits) < 2:
        console.print("one split only: leaks between splits cannot be looked for")
    elif not report.has_leaks:
        console.print("[green]no leaks between splits found[/green]")


def _print_facts(report: DatasetReport, console: Console) -> None:
    from rich.table import Table

    facts = Table(show_header=False, box=None)
    facts.add_row("format", report.format)
    facts.add_row("images", f"{report.num_images:,} ({report.num_bytes:,} bytes on disk)")
    if report.num_volumes:
        facts.add_row("volumes", f"{report.num_volumes:,} (NIfTI files and DICOM series; images are slices)")
    facts.add_row("width x height", _counts(report.sizes))
    facts.add_row("channels", _counts(report.channels))
    facts.add_row("stored as", _counts(report.depths))
    console.print(facts)


def _print_classes(report: DatasetReport, console: Console) -> None:
    """One row a class, one column a split."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("class", *[split.name for split in report.splits])
    names = dict.fromkeys(name for split in report.splits for name in split.class_counts)
    for name in names:
        table.add_row(escape(name), *[f"{split.class_counts.get(name, 0):,}" for split in report.splits])
    table.add_row("all", *[f"{split.num_images:,}" for split in report.splits], end_section=True)
    table.add_row("subjects", *[_or_dash(split.num_subjects, ",") for split in report.splits])
    table.add_row("largest : smallest class", *[_or_dash(split.imbalance, ".1f") for split in report.splits])
    console.print(table)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _counts(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:SHOWN])
    return shown + (f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else "")


def _print_groups(
    title: str, groups: list[tuple[str, ...]] | tuple[tuple[str, ...], ...], console: Console
) -> None:
    if not groups:
        return
    console.print(f"{title}: {len(groups):,}", markup=False)
    for group in groups[:SHOWN]:
        names = " = ".join(group[:4]) + (f" and {len(group) - 4} more" if len(group) > 4 else "")
        console.print(f"  {names}", markup=False)
    if len(groups) > SHOWN:
        console.print(f"  and {len(groups) - SHOWN:,} more", markup=False)
