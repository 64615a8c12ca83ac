"""``instahide attack run recovery``: can the private images be rebuilt from the encodings?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..console import OutputFormat, progress_bar
from .shared import (
    Checks,
    Encoded,
    FailOnLeak,
    Format,
    Labels,
    MaxSeconds,
    NumMixed,
    NumPrivate,
    NumPrivateImages,
    Out,
    Public,
    Seed,
    Settings,
    Truth,
    finish,
    law_and_scheme,
    needed,
    number_of_images,
    released,
    store_arrays,
)

MAX_TRIED = 2_000
"""Encodings up to which the public images are tried as the pool: that is where it decides, and is cheap."""


class Tier(StrEnum):
    """What the attacker is given."""

    decode = "decode"
    label_only = "label-only"
    no_labels = "no-labels"


def recovery(
    encoded: Encoded = None,
    public: Public = None,
    num_private_images: NumPrivateImages = None,
    settings: Settings = None,
    tier: Annotated[Tier, typer.Option(help="What the attacker is given.")] = Tier.label_only,
    pairing: Annotated[
        Path | None,
        typer.Option(
            help="Tier decode: an .npz with private_rows and coefficients, (N,2) each.", metavar="FILE"
        ),
    ] = None,
    pool: Annotated[
        Path | None,
        typer.Option(
            help="The public pool that was mixed in.",
            metavar="PATH",
            show_default="the public images are tried, for up to 2,000 encodings",
        ),
    ] = None,
    try_public: Annotated[
        bool, typer.Option("--try-public/--no-pool", help="Whether the public images are tried as the pool.")
    ] = True,
    truth: Truth = None,
    labels: Labels = None,
    sign_network: Annotated[
        Path | None,
        typer.Option(help="Trained sign network: read if it is there, else written.", metavar="FILE"),
    ] = None,
    training_seconds: Annotated[
        float, typer.Option(min=1.0, help="Processor time to train the sign network.")
    ] = 90.0,
    checks: Checks = True,
    num_mixed: NumMixed = None,
    num_private: NumPrivate = None,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    out: Out = None,
    format: Format = OutputFormat.text,
    fail_on_leak: FailOnLeak = False,
) -> None:
    """Rebuild the private images from encodings released several times over.

    OUT/recovered.npz holds images (n,C,H,W) in [-1,1], in the attack's own order.
    Whether anything was recovered is decided without TRUTH.

    Exit codes: 0 measured · 2 wrong input · 3 leaks, with --fail-on-leak ·
    4 damaged file.

    Examples:

        instahide attack run recovery --encoded e.npz --public pool.npz --num-private-images 100 --out r/

        instahide attack run recovery --settings law.toml --tier label-only --out r/
    """
    from instahide.attacks.encodings_file import read_public_images, read_release
    from instahide.attacks.recovery.recover import RecoveryView, recover_images
    from instahide.attacks.recovery.recovery_files import network_at, read_pairing, read_truth
    from instahide.attacks.recovery.recovery_result import recovery_result
    from instahide.attacks.view import AttackerView

    n = num_private_images or number_of_images(settings)
    with released(encoded, settings, public=public, truth=truth) as files, progress_bar("reading"):
        release = read_release(needed(files, "encoded"), labels=labels, at_least=n)
        similar = read_public_images(needed(files, "public"), release.image_shape)
        truth = files["truth"]
        if settings is not None and tier is Tier.decode:
            pairing = truth
        drawn_from = None if pool is None else read_public_images(pool, release.image_shape)
        rows, coefficients = (None, None) if pairing is None else read_pairing(pairing, len(release))
        originals, true_rows = (None, None) if truth is None else read_truth(truth, release.image_shape)
    law, scheme = law_and_scheme(release, num_mixed, num_private)
    crossed = scheme == "cross" and law.num_private < law.num_mixed
    if drawn_from is None and try_public and crossed and len(release) <= MAX_TRIED:
        drawn_from = similar
    view = RecoveryView(
        AttackerView(release.images, release.labels, law, scheme, similar, drawn_from),
        n,
        tier.value,
        rows,
        coefficients,
    )
    with progress_bar("recovering") as progress:
        network = network_at(sign_network, view.release, training_seconds, seed, progress)
        found = recover_images(
            view,
            network=network,
            training_seconds=training_seconds,
            checks=checks,
            seed=seed,
            max_seconds=max_seconds,
            progress=progress,
        )
    result = recovery_result(view, found, truth=originals, truth_rows=true_rows, seed=seed)
    pairing_found = {"private_rows": found.private_rows, "coefficients": found.coefficients}
    store_arrays(out, "recovered.npz", images=found.images.numpy(), **pairing_found)
    finish(result, out, format, fail_on_leak)
