"""``instahide attack curve``: how many releases of an image can you afford?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import OutputFormat, progress_bar
from .shared import FailOnLeak, Format, Out, Seed, finish


def curve(
    settings: Annotated[
        Path, typer.Argument(help="A TOML file that says which images to encode, and how.", metavar="FILE")
    ],
    along: Annotated[
        str,
        typer.Option(
            help="releases, num-mixed, num-private-images, quantization-bits or augment.", metavar="NAME"
        ),
    ] = "releases",
    value: Annotated[
        list[int] | None,
        typer.Option(help="A value to try; may be repeated.", show_default="1 2 5 10 20 along releases"),
    ] = None,
    tier: Annotated[str, typer.Option(help="decode, label-only or no-labels.")] = "label-only",
    pool_known: Annotated[
        bool, typer.Option("--pool-known", help="The attacker holds the very pool that was mixed in.")
    ] = False,
    training_seconds: Annotated[
        float, typer.Option(min=0.5, help="Processor time for the attacker's network, for each law.")
    ] = 60.0,
    seed: Seed = 0,
    out: Out = None,
    format: Format = OutputFormat.text,
    fail_on_leak: FailOnLeak = False,
) -> None:
    r"""Encode your images under settings that differ in one number, and attack each.

    Along releases the answer is how many encodings of an image you can afford
    before this attack rebuilds it. A settings file:

        \[data]
        private = "scans/"
        public = "patches/"
        num-private-images = 100
        \[encoding]
        num-mixed = 4

    Exit codes: 0 measured · 2 wrong input · 3 leaks, with --fail-on-leak.

    Example:

        instahide attack curve law.toml --value 1 --value 2 --value 5 --out curve/
    """
    from instahide.attacks.recovery.curves import recovery_curve
    from instahide.attacks.settings import read_settings
    from instahide.errors import InvalidInputError

    values = value or ([1, 2, 5, 10, 20] if along == "releases" else [0, 1] if along == "augment" else [])
    if not values:
        raise InvalidInputError(f"no value of {along} to try", hint="give --value, once for each")
    with progress_bar("attacking") as progress:
        result = recovery_curve(
            read_settings(settings),
            along,
            values,
            tier=tier,
            pool_known=pool_known,
            training_seconds=training_seconds,
            seed=seed,
            progress=progress,
        )
    finish(result, out, format, fail_on_leak)
