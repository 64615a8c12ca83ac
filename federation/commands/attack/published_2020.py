"""``instahide attack run published-2020``: what the attack published in 2020 rebuilds, beside ours."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..console import OutputFormat, progress_bar
from .shared import (
    Encoded,
    FailOnLeak,
    Format,
    Labels,
    MaxSeconds,
    NumMixed,
    NumPrivate,
    Out,
    Seed,
    finish,
    law_of_release,
)


class Architecture(StrEnum):
    """Of the pair network."""

    unmasked = "unmasked"
    wide_residual = "wide-residual"


def published_2020(
    encoded: Encoded,
    public: Annotated[Path, typer.Option(help="Images like the private ones: a folder, or x in an .npz.")],
    num_private_images: Annotated[int, typer.Option(min=2, help="n, how many images were encoded.")],
    pool: Annotated[
        Path | None, typer.Option(help="The public pool that was mixed in; default: the public images.")
    ] = None,
    labels: Labels = None,
    num_mixed: NumMixed = None,
    num_private: NumPrivate = None,
    architecture: Annotated[
        Architecture, typer.Option(help="unmasked: minutes on a processor; wide-residual: as published.")
    ] = Architecture.unmasked,
    depth: Annotated[int, typer.Option(help="Of wide-residual; 28 as published.")] = 10,
    width: Annotated[int, typer.Option(min=1, help="Of wide-residual; 6 as published.")] = 1,
    training_seconds: Annotated[
        float, typer.Option(min=1, help="Of processor time; wide-residual: for each of the two.")
    ] = 240.0,
    networks: Annotated[
        Path | None, typer.Option(help="Trained networks: read if the file exists, else written.")
    ] = None,
    colour: Annotated[bool, typer.Option(help="Fit and apply the colour map.")] = True,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    out: Out = None,
    format: Format = OutputFormat.text,
    fail_on_leak: FailOnLeak = False,
) -> None:
    """Run the attack published in 2020: pair network, groups, objective.

    A baseline to compare with `recovery`. It needs soft labels, the number of
    private images and some 50 releases of each. OUT/recovered.npz holds the images.

    Exit codes: 0 measured · 2 wrong input · 3 leaks, with --fail-on-leak ·
    4 damaged file.

    Example:

        instahide attack run published-2020 --encoded e.npz --public p.npz --num-private-images 100 --out r/
    """
    import numpy as np

    from instahide.attacks.encodings_file import read_public_images, read_release
    from instahide.attacks.published_2020.network_files import load_networks, save_networks
    from instahide.attacks.published_2020.pair_network import PairNetworkSettings
    from instahide.attacks.published_2020.pipeline import (
        NUM_PROTOTYPES,
        PipelineSettings,
        check_attackable,
        train_networks,
    )
    from instahide.attacks.published_2020.result import published_2020 as attack
    from instahide.attacks.view import AttackerView

    with progress_bar("reading"):
        release = read_release(encoded, labels=labels)
        similar = read_public_images(public, release.image_shape)
        drawn_from = None if pool is None else read_public_images(pool, release.image_shape)
    law = law_of_release(release.config, num_mixed, num_private)
    scheme = release.scheme or ("inside" if law.num_mixed == law.num_private else "cross")
    if scheme == "cross" and drawn_from is None:
        drawn_from = similar
    view = AttackerView(release.images, release.labels, law, scheme, similar, drawn_from)
    check_attackable(view, num_private_images)

    def chosen(num_prototypes: int) -> PairNetworkSettings:
        return PairNetworkSettings(architecture.value, depth, width, num_prototypes, training_seconds)

    settings = PipelineSettings(chosen(1), chosen(NUM_PROTOTYPES), colour=colour)
    trained = None
    with progress_bar("published attack") as progress:
        if networks is not None and networks.exists():
            trained = load_networks(networks)
        elif networks is not None:
            trained = train_networks(view, settings, seed=seed, progress=progress)
            save_networks(trained, settings, networks, shape=release.image_shape)
        result, recovery = attack(
            view,
            num_private_images,
            settings=settings,
            networks=trained,
            seed=seed,
            max_seconds=max_seconds,
            progress=progress,
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        np.savez(out / "recovered.npz", images=recovery.images)
    finish(result, out, format, fail_on_leak)
