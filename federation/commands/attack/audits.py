"""``instahide attack run audits``: was the encoder built soundly?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instahide.errors import InvalidInputError

from ..console import OutputFormat, Progress, progress_bar
from .shared import (
    Encoded,
    FailOnLeak,
    Format,
    Labels,
    MaxSeconds,
    NumMixed,
    NumPrivate,
    Out,
    Public,
    Seed,
    Settings,
    finish,
    law_of_release,
    needed,
    released,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from instahide.attacks.implementation_audits import Release
    from instahide.attacks.view import AttackResult


def audits(
    encoded: Encoded = None,
    settings: Settings = None,
    artefact: Annotated[
        list[Path] | None,
        typer.Option(
            help="File or folder that is shared too: scanned for generators and keys.", metavar="PATH"
        ),
    ] = None,
    public: Public = None,
    labels: Labels = None,
    num_mixed: NumMixed = None,
    num_private: NumPrivate = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Encodings of each image.", show_default="the release's, or 1")
    ] = None,
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="Rows are not in the order of the data.")
    ] = False,
    pixel_mean: Annotated[
        str | None, typer.Option(help="Of the normalisation (p/255 - mean)/std, by channel.", metavar="M,M,M")
    ] = None,
    pixel_std: Annotated[str | None, typer.Option(help="Of the normalisation.", metavar="S,S,S")] = None,
    seed_bits: Annotated[int, typer.Option(min=1, max=32, help="Try seeds below 2 to this.")] = 16,
    checks: Annotated[
        bool, typer.Option(help="Also try each audit on a planted fault and a sound release.")
    ] = True,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    out: Out = None,
    format: Format = OutputFormat.text,
    fail_on_leak: FailOnLeak = False,
) -> None:
    """Audit an implementation: what leaks although the scheme was followed.

    Small seeds, a recoverable mask generator, reused masks and coefficients, full
    precision, telling labels, self-mixing, fixed partners, a half-used public pool;
    with --artefact, generator states, seeds and keys in files (no pickle is loaded).
    --public is the pool in the encoder's order. With --settings our own encoder is
    audited under those settings. A verdict is about the file alone.

    Exit codes: 0 audited · 2 wrong input · 3 a weakness, with --fail-on-leak ·
    4 damaged file.

    Example:

        instahide attack run audits --encoded encoded/ --artefact model.safetensors
    """
    from instahide.attacks.implementation_audits import audit, audit_artefacts, summary
    from instahide.attacks.implementation_audits.runner import with_check

    if encoded is None and settings is None and not artefact:
        raise InvalidInputError(
            "there is nothing to audit", hint="give --encoded or --settings, --artefact, or both"
        )
    with progress_bar("auditing") as progress:
        if encoded is None and settings is None:
            scanned = audit_artefacts(artefact or [], progress=progress)
            results = [with_check(scanned) if checks else scanned]
        else:
            release = _release(
                encoded,
                settings,
                public,
                labels,
                num_mixed,
                num_private,
                epochs,
                shuffled,
                pixel_mean,
                pixel_std,
                progress,
            )
            results = audit(
                release, artefact or [], seed_bits=seed_bits, with_checks=checks, seed=seed,
                max_seconds=float("inf") if max_seconds is None else max_seconds, progress=progress,
            )  # fmt: skip
    if format is OutputFormat.text:
        _show_each(results)
    if out is not None:
        _store_each(results, out)
    whole = summary(results)
    finish(whole, out, format, fail_on_leak, audits=[result.to_dict() for result in results])


def _release(
    encoded: Path | None,
    settings: Path | None,
    public: Path | None,
    labels: Path | None,
    num_mixed: int | None,
    num_private: int | None,
    epochs: int | None,
    shuffled: bool,
    pixel_mean: str | None,
    pixel_std: str | None,
    progress: Progress,
) -> Release:
    from dataclasses import replace

    from instahide.attacks.encodings_file import read_public_images
    from instahide.attacks.implementation_audits import Release

    law = law_of_release(None, num_mixed, num_private)
    scheme = "inside" if law.num_private == law.num_mixed else "cross"
    progress(0, None, "reading")
    with released(encoded, settings, in_data_order=True, public=public) as files:
        release = Release.read(
            needed(files, "encoded"),
            labels=labels,
            config=law,
            scheme=scheme,
            epochs=epochs or 1,
            in_data_order=not shuffled,
        )
        C, H, W = release.encodings.shape[1:]
        pool = files["public"]
        if pool is None or (settings is not None and release.scheme == "inside"):
            held = None
        else:
            held = read_public_images(pool, (C, H, W)).images
    if shuffled or epochs is not None:
        in_order = release.in_data_order and not shuffled
        release = replace(release, in_data_order=in_order, epochs=epochs or release.epochs)
    values = _pixel_values(pixel_mean, pixel_std, C)
    return replace(release, pixel_values=values, public_pool=held)


def _pixel_values(mean: str | None, std: str | None, channels: int) -> NDArray[np.float64] | None:
    """(C, 256) values of 8-bit pixels under (p/255 − mean)/std; ``None`` if no normalisation was given."""
    if mean is None and std is None:
        return None
    import numpy as np

    means, deviations = (
        _numbers("--pixel-mean", mean or "0", channels),
        _numbers("--pixel-std", std or "1", channels),
    )
    if min(deviations) <= 0:
        raise InvalidInputError(f"--pixel-std is {std}", hint="standard deviations are positive")
    pixels = np.arange(256)[None, :] / 255.0
    return np.asarray((pixels - np.array(means)[:, None]) / np.array(deviations)[:, None])


def _numbers(option: str, text: str, channels: int) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInputError(f"{option} is {text!r}", hint="give numbers with commas between") from error
    values = values * channels if len(values) == 1 else values
    if len(values) != channels:
        raise InvalidInputError(
            f"{option} has {len(values)} numbers for {channels} channels", hint="one each"
        )
    return values


def _show_each(results: list[AttackResult]) -> None:
    words = {True: "LEAKS", False: "sound", None: "unknown"}
    colours = {True: typer.colors.RED, False: typer.colors.GREEN, None: typer.colors.YELLOW}
    for result in results:
        typer.secho(f"{words[result.leaked]:<8}", fg=colours[result.leaked], nl=False)
        typer.echo(f"{result.name:<18}{result.verdict}")
        for finding in result.settings.get("findings", [])[:20]:
            typer.echo(f"{'':<26}{finding['kind']}: {finding['what']} ({finding['where']})")


def _store_each(results: list[AttackResult], out: Path) -> None:
    from instahide.attacks.result_files import write_result

    for result in results:
        write_result(result, out / result.name.replace(" ", "-"), attack="audits")
