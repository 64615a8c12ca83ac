"""``instahide simulate``: what-if studies with hundreds of simulated hospitals on one machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import OutputFormat, StoppedError, print_json, progress_bar
from .run_settings import parse_settings, read_settings

if TYPE_CHECKING:
    from instahide.images import ImageSet

RESULTS, PAGE = "results.json", "index.html"


def simulate(
    out: Annotated[Path, typer.Option(help=f"Folder to make, for {RESULTS} and {PAGE}.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled images, a folder or a file.", show_default="scikit-learn's digits, 8x8"),
    ] = None,
    hospitals: Annotated[int, typer.Option(help="Simulated hospitals, 2 to 100,000.")] = 100,
    images_per_hospital: Annotated[int, typer.Option(help="Training images of one, on average.")] = 40,
    alpha: Annotated[
        float, typer.Option(help="Dirichlet spread of the classes: 0.1 very uneven, 100 even; 0: no draw.")
    ] = 1.0,
    size_skew: Annotated[
        float, typer.Option(help="How uneven sizes are: standard deviation of their logarithm, 0 to 3.")
    ] = 0.0,
    dropout: Annotated[float, typer.Option(help="Chance that a hospital is lost in a round.")] = 0.0,
    share: Annotated[
        float, typer.Option(help="Share of the hospitals that trains in a round (fraction-train).")
    ] = 1.0,
    arm: Annotated[
        list[str] | None, typer.Option(help="NAME:KEY=VALUE,...  a run to compare; may be given again.")
    ] = None,
    vary: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE,VALUE  every arm with each value; may be given again.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="TOML file: run settings for all arms, [arm.NAME] for one.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE  a run setting for every arm.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A hospital's policy.toml, to see what it would refuse.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the spread and of who drops out; public.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that train; 1 is this one.")] = 1,
    backend: Annotated[str, typer.Option(help="local, or ray: Flower's simulation runtime.")] = "local",
    scratch: Annotated[
        Path | None,
        typer.Option(help="Where the hospitals' state is meanwhile.", show_default="the temporary folder"),
    ] = None,
    output: Annotated[
        OutputFormat, typer.Option("--format", help="text for people, json for programs.")
    ] = OutputFormat.text,
) -> None:
    """Train with hundreds of simulated hospitals and compare ways to do it.

    The coordinator's rounds and each hospital's policy, ledgers, encoder,
    training, masks and signatures are the product's own; see `instahide
    coordinator run --help` for the settings. NOT simulated: network, TLS, Flower's
    processes, separate machines, people. Seconds and bytes of a study are no
    measurement of a real federation, and the report says so.

    Memory: one model a process, 32 open hospitals, and the updates of one round at
    the coordinator (as in a real run). Ctrl-C leaves nothing behind.

    Exit codes: 0 done · 2 wrong settings or data, nothing was written · 5 an arm
    failed (the report tells why; the other arms are in it) · 130 interrupted.

    Examples:

        instahide simulate --out study/ --hospitals 100 --alpha 0.3

        instahide simulate --out study/ --arm plain:encoding=none --arm hidden:encoding=instahide
        --vary strategy=fedavg,median --set num-server-rounds=20 --share 0.2 --workers 4
    """
    from instahide.errors import FederationError, InvalidInputError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInputError(f"{out} is in use", hint="give --out a folder that is new or empty")
    common = read_settings(settings)
    named = common.pop("arm", {})
    if not isinstance(named, dict) or not all(isinstance(own, dict) for own in named.values()):
        raise InvalidInputError("arm is not a table of tables", hint="write [arm.NAME] and KEY = VALUE lines")
    common |= parse_settings(set_ or [])
    if share != 1.0:
        common.setdefault("fraction-train", share)
    from ..simulation.arms import build_arms
    from ..simulation.population import Heterogeneity, spread
    from ..simulation.study import StudySettings, run_study

    arms = build_arms(common, arm or [], vary or [], named, num_hospitals=hospitals)
    heterogeneity = Heterogeneity(
        num_hospitals=hospitals,
        images_per_hospital=images_per_hospital,
        alpha=alpha,
        size_skew=size_skew,
        seed=seed,
    )
    chosen: dict[str, Any] = {"policy": _policy(policy)} if policy else {}
    study = StudySettings(
        heterogeneity=heterogeneity,
        dropout=dropout,
        num_workers=workers,
        backend=backend,
        scratch=scratch,
        **chosen,
    )
    population = spread(_images(data), heterogeneity)
    try:
        with progress_bar("simulating") as progress:
            results = run_study(population, arms, study, progress)
    except KeyboardInterrupt as error:
        raise StoppedError("interrupted: nothing was written", hint="start the study again") from error
    _write(out, results)
    if output is OutputFormat.json:
        print_json({"out": str(out), **results})
    else:
        _print(out, results)
    failed = [each["name"] for each in results["arms"] if "failed" in each]
    if failed:
        raise FederationError(
            f"{len(failed)} of {len(arms)} arms failed: {', '.join(failed)}", hint=f"see {out / PAGE}"
        )


def _images(path: Path | None) -> ImageSet:
    if path is None:
        from ..demo.data import digits

        return digits()
    from instahide.readers import load_images

    return load_images(path)


def _policy(path: Path) -> str:
    from ..site.policy import load_policy

    load_policy(path)  # its faults are told now, not by every hospital
    return path.read_text(encoding="utf-8")


def _write(out: Path, results: dict[str, Any]) -> None:
    from instahide.atomic import atomic_write_text

    from ..simulation.report import study_page

    out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / PAGE, study_page(results))
    atomic_write_text(out / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")


def _print(out: Path, results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..simulation.report import COLUMNS, arm_rows

    table = Table(*COLUMNS, title=f"{results['hospitals']['hospitals']:,} simulated hospitals")
    for row in arm_rows(results):
        table.add_row(*(_cell(value) for value in row))
    Console().print(table)
    for line in results["not-simulated"][:2]:
        typer.echo(f"not simulated: {line}")
    typer.echo(f"picture and all figures: {out / PAGE}, {out / RESULTS}")


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
