"""``instahide attack frontier``: accuracy, leaks and cost of every defence on one data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import OutputFormat, StoppedError, print_json, progress_bar
from .shared import Format, Seed

if TYPE_CHECKING:
    from instahide.attacks.frontier.defences import Defence
    from instahide.images import ImageSet


def frontier(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for frontier.json and index.html.", metavar="DIR")
    ],
    data: Annotated[
        Path | None, typer.Argument(help="Labelled images.", show_default="scikit-learn's digits")
    ] = None,
    public: Annotated[
        Path | None, typer.Option(help="Pool to mix in.", show_default="patches of two photographs")
    ] = None,
    defence: Annotated[
        list[str] | None, typer.Option(help="Only rows whose name contains this; may be repeated.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes of each training run.")] = 20,
    max_images: Annotated[int, typer.Option(min=150, help="Images to use, chosen at random.")] = 2500,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Rows measured side by side.", show_default="the cores, at most 8"),
    ] = None,
    seed: Seed = 0,
    format: Format = OutputFormat.text,
) -> None:
    """Measure every defence on one data set: accuracy in three inference modes, four leaks, cost.

    Differential privacy (DP-SGD at five epsilons, noise for whole sites), secure
    aggregation, InstaHide in all its forms and what can be combined of them are
    trained and attacked alike, in groups. The attacks know the defence. Every
    row is kept as soon as it is measured; the same command goes on after an
    interruption.

    Exit codes: 0 measured · 2 wrong input · 4 a damaged frontier.json ·
    130 interrupted.

    Example:

        instahide attack frontier pneumoniamnist.npz --out frontier/
    """
    from instahide.attacks.frontier.data import split_for_frontier
    from instahide.attacks.frontier.page import write_frontier_page
    from instahide.attacks.frontier.table import run_frontier
    from instahide.training_config import TrainingConfig

    from ...frontier_noise import NoiseOfSites

    chosen = _choose(defence)
    images, source = _images(data, max_images, seed)
    parts = split_for_frontier(images, _pool(public, images), seed=seed)
    config = TrainingConfig(epochs=epochs, deterministic=True, num_threads=1)
    fingerprint = {
        "source": source,
        "images": len(images),
        "seed": seed,
        "epochs": epochs,
        "pool": None if public is None else public.name,
    }
    out.mkdir(parents=True, exist_ok=True)
    try:
        with progress_bar("measuring") as progress:
            rows = run_frontier(
                parts,
                chosen,
                config,
                out / "frontier.json",
                fingerprint=fingerprint,
                processes=processes or min(os.cpu_count() or 1, 8),
                make_site_noise=NoiseOfSites,
                progress=progress,
            )
    except KeyboardInterrupt as error:
        raise StoppedError(
            f"interrupted: the rows measured so far are in {out / 'frontier.json'}",
            hint="the same command goes on with the others",
        ) from error
    write_frontier_page(rows, source, out / "index.html")
    if format is OutputFormat.json:
        from dataclasses import asdict

        print_json({"source": source, "rows": [asdict(row) | {"worst": row.worst} for row in rows]})
    else:
        _show(rows, out)


def _choose(wanted: list[str] | None) -> list[Defence]:
    from instahide.attacks.frontier.defences import DEFENCES
    from instahide.errors import InvalidInputError

    chosen = [item for item in DEFENCES if not wanted or any(word in item.name for word in wanted)]
    if not chosen:
        raise InvalidInputError(
            f"no defence is named like {wanted}", hint="; ".join(item.name for item in DEFENCES)
        )
    return chosen


def _images(data: Path | None, max_images: int, seed: int) -> tuple[ImageSet, str]:
    import numpy as np

    from instahide.readers import load_images

    if data is None:
        from ...demo.data import digits

        images, source = digits(), "scikit-learn digits, 8x8"
    else:
        images = load_images(data)
        source = f"{data.name}, {'x'.join(map(str, images.image_shape))}"
    order = np.random.default_rng(seed).permutation(len(images))[:max_images]
    return images.subset(np.sort(order)), source


def _pool(public: Path | None, images: ImageSet) -> ImageSet:
    import numpy as np

    if public is not None:
        from instahide.attacks.encodings_file import read_public_images

        return read_public_images(public, images.image_shape)
    from ...demo.data import natural_patches

    return natural_patches(images.image_shape, count=2000, rng=np.random.default_rng(0))


def _show(rows: list[Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    table.add_column("defence", no_wrap=True)
    modes, leaks = ("plain query", "one view", "ten views"), ("rebuilt SSIM", "encodings AUC")
    for name in (*modes, *leaks, "model AUC", "update SSIM", "epsilon"):
        table.add_column(name, justify="right", no_wrap=True)
    approach = ""
    for row in rows:
        if row.approach != approach:
            approach = row.approach
            table.add_row(f"[bold]{approach}[/bold]")
        accuracy = [row.accuracy[mode] for mode in ("plain", "one_view", "ten_views")]
        found = [row.leaks[name] for name in ("recovery", "membership", "model", "update")]
        table.add_row(
            f"  {row.name}",
            *("–" if value is None else f"{value:.3f}" for value in accuracy),
            *("–" if leak is None else f"{leak.value:.2f}{_weaker(leak.attack)}" for leak in found),
            "none" if row.epsilon is None else f"{row.epsilon:.1f}, {row.unit}",
        )
    console = Console(highlight=False, width=156)
    console.print(table)
    console.print("accuracy in three inference modes; leaks are lower bounds; – nothing of the kind leaves")
    console.print("t: tried by a threshold on the loss only, a weaker attack than shadow models")
    console.print(f"written to {out / 'index.html'}", markup=False, soft_wrap=True)


def _weaker(attack: str) -> str:
    return "t" if "threshold" in attack else ""
