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
    NumPrivateImages,
    Out,
    Pool,
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


class Architecture(StrEnum):
    """Of the pair network."""

    unmasked = "unmasked"
    wide_residual = "wide-residual"


def published_2020(
    encoded: Encoded = None,
    public: Public = None,
    num_private_images: NumPrivateImages = None,
    settings: Settings = None,
    pool: Pool = None,
    truth: Truth = None,
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
    private images and some 50 releases of each. Without --pool the public images are
    taken as the pool. OUT/recovered.npz holds the images.

    Exit codes: 0 measured · 2 wrong input · 3 leaks, with --fail-on-leak ·
    4 damaged file.

    Example:

        instahide attack run published-2020 --encoded e.npz --public p.npz --num-private-images 100 --out r/
    """
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
    from instahide.attacks.replica import read_truth
    from instahide.attacks.view import AttackerView

    n = num_private_images or number_of_images(settings)
    with released(encoded, settings, public=public, truth=truth) as files, progress_bar("reading"):
        release = read_release(needed(files, "encoded"), labels=labels)
        similar = read_public_images(needed(files, "public"), release.image_shape)
        drawn_from = None if pool is None else read_public_images(pool, release.image_shape)
        known = None if files["truth"] is None else read_truth(files["truth"])
    law, scheme = law_and_scheme(release, num_mixed, num_private)
    if scheme == "cross" and drawn_from is None:
        drawn_from = similar
    view = AttackerView(release.images, release.labels, law, scheme, similar, drawn_from)
    check_attackable(view, n)

    def chosen(num_prototypes: int) -> PairNetworkSettings:
        return PairNetworkSettings(architecture.value, depth, width, num_prototypes, training_seconds)

    plan = PipelineSettings(chosen(1), chosen(NUM_PROTOTYPES), colour=colour)
    trained = None
    with progress_bar("published attack") as progress:
        if networks is not None and networks.exists():
            trained = load_networks(networks)
        elif networks is not None:
            trained = train_networks(view, plan, seed=seed, progress=progress)
            save_networks(trained, plan, networks, shape=release.image_shape)
        result, recovery = attack(
            view,
            n,
            truth=known,
            settings=plan,
            networks=trained,
            seed=seed,
            max_seconds=max_seconds,
            progress=progress,
        )
    store_arrays(out, "recovered.npz", images=recovery.images)
    finish(result, out, format, fail_on_leak)
