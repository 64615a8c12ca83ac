"""What the attack verbs share: options, and how a result is shown, stored and judged.

An attack that succeeds is a *finding*, not a failure of the program: the exit code is 0 whether the attack
recovers something or not, unless ``--fail-on-leak`` asks for 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from instahide.errors import RefusedError

from ..console import OutputFormat, print_json

if TYPE_CHECKING:
    from instahide.attacks.encodings_file import Release
    from instahide.attacks.view import AttackResult
    from instahide.encoder_config import EncoderConfig

Labels = Annotated[
    Path | None, typer.Option(help="Soft labels (N,K) in an .npy of their own.", metavar="FILE")
]
Encoded = Annotated[
    Path | None,
    typer.Option(
        help="A folder of `instahide encode`, or an .npz with encodings (N,C,H,W) and labels (N,K).",
        metavar="PATH",
    ),
]
Settings = Annotated[
    Path | None,
    typer.Option(
        help="Instead of a release: a TOML file that says which images to encode, and how.", metavar="FILE"
    ),
]
Public = Annotated[
    Path | None,
    typer.Option(help="Public images of the same kind: a folder, or an .npz with x (uint8).", metavar="PATH"),
]
Pool = Annotated[
    Path | None,
    typer.Option(
        help="The public pool that was mixed in, if there was one.", metavar="PATH", show_default=False
    ),
]
Truth = Annotated[
    Path | None,
    typer.Option(
        help="An .npz with the private images (and private_rows), to score the attack only.", metavar="FILE"
    ),
]
NumPrivateImages = Annotated[
    int | None,
    typer.Option(
        min=2, metavar="N", help="n, different private images in the release.", show_default="the settings'"
    ),
]
Checks = Annotated[bool, typer.Option(help="Also attack own canaries and a null.")]
Out = Annotated[Path | None, typer.Option(help="Folder for result.json and pictures.", metavar="DIR")]
Seed = Annotated[int, typer.Option(min=0, help="Of the attacker's own random choices.")]
MaxSeconds = Annotated[
    float | None, typer.Option(min=0.0, help="Stop in order after this long.", show_default="no limit")
]
Format = Annotated[OutputFormat, typer.Option("--format", help="Lines for people, or one JSON object.")]
FailOnLeak = Annotated[bool, typer.Option("--fail-on-leak", help="Exit with 3 if the attack succeeds.")]
NumMixed = Annotated[
    int | None,
    typer.Option(min=1, max=16, metavar="K", help="k, images in one encoding.", show_default="the release's"),
]
NumPrivate = Annotated[
    int | None,
    typer.Option(min=1, max=16, metavar="N", help="Private ones among them.", show_default="the release's"),
]


def law_of_release(
    config: EncoderConfig | None,
    num_mixed: int | None,
    num_private: int | None,
    *,
    mode: str = "compat",
) -> EncoderConfig:
    """The public law to assume: what the release says, changed by the options; else the published one."""
    from dataclasses import replace

    from instahide.encoder_config import EncoderConfig

    if config is None:
        return EncoderConfig(num_mixed=num_mixed or 6, num_private=num_private or 2, mode=mode)
    return replace(
        config, num_mixed=num_mixed or config.num_mixed, num_private=num_private or config.num_private
    )


def law_and_scheme(
    release: Release, num_mixed: int | None, num_private: int | None
) -> tuple[EncoderConfig, str]:
    """The law to assume of a release, and its scheme; one that says neither has the published law."""
    law = law_of_release(release.config, num_mixed, num_private)
    return law, release.scheme or ("inside" if law.num_private == law.num_mixed else "cross")


@contextmanager
def released(
    encoded: Path | None, settings: Path | None, *, in_data_order: bool = False, **given: Path | None
) -> Iterator[dict[str, Path | None]]:
    """The files to attack, as ``{"encoded": ..., "public": ..., "truth": ...}``.

    With ``--settings`` they are made in a folder that is gone when the block ends: ``public`` is the pool, or
    in the inside scheme the images that were not encoded, and ``truth`` is for scoring only. Rows are in
    random order, or epoch by epoch with ``in_data_order``.
    """
    from instahide.errors import InvalidInputError

    if settings is None:
        if encoded is None:
            raise InvalidInputError("there is nothing to attack", hint="give --encoded, or --settings FILE")
        yield {"encoded": encoded, **given}
        return
    named = [name for name, path in {"encoded": encoded, **given}.items() if path is not None]
    if named:
        raise InvalidInputError(
            f"--settings makes a release of its own, so --{named[0]} has no meaning",
            hint="give one or the other",
        )
    with TemporaryDirectory(prefix="instahide-rehearsal-") as name:
        made = _rehearse_into(settings, Path(name), in_data_order)
        yield {role: made.get(role) for role in ("encoded", *given)}


def needed(files: dict[str, Path | None], role: str) -> Path:
    """The file of a role that an attack cannot do without."""
    from instahide.errors import InvalidInputError

    path = files[role]
    if path is None:
        raise InvalidInputError(f"--{role} is missing", hint=f"give --{role}, or --settings FILE")
    return path


def number_of_images(settings: Path | None) -> int:
    """n, as the settings have it."""
    from instahide.attacks.settings import read_settings
    from instahide.errors import InvalidInputError

    if settings is None:
        raise InvalidInputError(
            "--num-private-images is missing", hint="give n, the number of different private images"
        )
    return read_settings(settings).num_private_images


def _rehearse_into(settings: Path, folder: Path, in_data_order: bool) -> dict[str, Path]:
    import numpy as np

    from instahide.attacks.replica import save_arrays
    from instahide.attacks.settings import read_settings, rehearse
    from instahide.storage import save_encoded

    rehearsal = rehearse(read_settings(settings), in_data_order=in_data_order)
    replica = rehearsal.replica
    save_arrays(replica, folder)
    epochs = replica.releases if in_data_order else 1
    save_encoded(replica.encoded, folder / "encoded", epochs=epochs)  # its manifest names the law
    public = folder / "public.npz"
    if not public.exists():
        np.savez(public, x=rehearsal.others.images)
    return {"encoded": folder / "encoded", "public": public, "truth": folder / "truth.npz"}


def store_arrays(out: Path | None, name: str, **arrays: Any) -> None:
    """``OUT/name``, an .npz of arrays; nothing without ``--out``."""
    if out is None:
        return
    import numpy as np

    from instahide.atomic import atomic_path

    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / name) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def finish(
    result: AttackResult, out: Path | None, format: OutputFormat, fail_on_leak: bool, **more: Any
) -> None:
    """Store, show and judge one result; ``more`` goes into the JSON beside it."""
    if out is not None:
        from instahide.attacks.result_files import write_result

        write_result(result, out, attack=click.get_current_context().info_name or "")
    if format is OutputFormat.json:
        print_json({**result.to_dict(), **more, "out": None if out is None else str(out)})
    else:
        show(result, out)
    if fail_on_leak and result.leaked:
        raise RefusedError(f"{result.name}: {result.verdict}", hint="--fail-on-leak asked for this exit code")


def show(result: AttackResult, out: Path | None) -> None:
    """A verdict, its numbers beside those of an attacker without the release, cost and assumptions."""
    from rich.console import Console
    from rich.table import Table

    from instahide.attacks.metrics import in_words

    console = Console(highlight=False, soft_wrap=True)
    colour = {True: "red", False: "green", None: "yellow"}[result.leaked]
    console.print(f"[bold {colour}]{'LEAKS' if result.leaked else 'verdict'}[/] ", end="")
    console.print(result.verdict or result.name, markup=False)
    numbers = Table("measure", "attack", "95 % interval", "without the release", box=None)
    for name, value in result.metrics.items():
        low_high = result.intervals.get(name)
        interval = "" if low_high is None else f"{low_high[0]:.3f} to {low_high[1]:.3f}"
        baseline = result.baselines.get(name)
        numbers.add_row(
            in_words(name), f"{value:.4g}", interval, "" if baseline is None else f"{baseline:.4g}"
        )
    console.print(numbers)
    for name, text in result.checks.items():
        console.print(f"{name} check: {text}", markup=False)
    console.print("assumed:", markup=False)
    for line in result.assumptions:
        console.print(f"  - {line}", markup=False)
    cost = f"cost: {result.cpu_seconds:.1f} processor seconds"
    if result.wall_seconds:
        cost += f", {result.wall_seconds:.1f} s in all"
    if result.peak_bytes:
        cost += f", {result.peak_bytes / 1e6:,.0f} MB"
    console.print(cost, markup=False)
    if out is not None:
        console.print(f"written to {out}", markup=False)
