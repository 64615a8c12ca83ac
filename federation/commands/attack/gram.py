"""``instahide attack run gram``: does the Gram matrix of the encodings give the private images away?"""

from __future__ import annotations

from typing import Annotated

import typer

from instahide.errors import InvalidInputError

from ..console import OutputFormat, progress_bar
from .shared import (
    Checks,
    Encoded,
    FailOnLeak,
    Format,
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


def gram(
    encoded: Encoded = None,
    public: Public = None,
    settings: Settings = None,
    num_private_images: NumPrivateImages = None,
    truth: Truth = None,
    gaussian: Annotated[
        bool,
        typer.Option("--gaussian", help="The theorem's own model instead: Gaussian features, made here."),
    ] = False,
    features: Annotated[int, typer.Option(min=16, help="d of --gaussian.")] = 3072,
    trials: Annotated[int, typer.Option(min=1, help="Releases per point of the --gaussian curve.")] = 5,
    checks: Checks = True,
    num_mixed: NumMixed = None,
    num_private: NumPrivate = None,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    out: Out = None,
    format: Format = OutputFormat.text,
    fail_on_leak: FailOnLeak = False,
) -> None:
    """Put private images together from inner products of encodings; no labels.

    PUBLIC is the pool that was mixed in. OUT/recovered.npz holds images in [-1, 1],
    pairs (N,2) and coefficients. With --gaussian: the chance that all vectors are
    found against the number of encodings, as in the published theorem.

    Exit codes: 0 measured · 2 wrong input · 3 leaks, with --fail-on-leak ·
    4 damaged file.

    Example:

        instahide attack run gram --encoded e.npz --public pool.npz --num-private-images 100 --out found/
    """
    if gaussian:
        from instahide.attacks.gram.feature_attack import gram_feature_attack

        with progress_bar("trials") as progress:
            result = gram_feature_attack(
                num_images=num_private_images or 50,
                num_features=features,
                trials=trials,
                seed=seed,
                progress=progress,
            )
        finish(result, out, format, fail_on_leak)
        return
    if settings is None and (encoded is None or public is None or num_private_images is None):
        raise InvalidInputError(
            "--encoded, --public and --num-private-images belong together",
            hint="give all three, or --settings FILE, or --gaussian",
        )
    n = num_private_images or number_of_images(settings)
    from instahide.attacks.encodings_file import read_public_images, read_release
    from instahide.attacks.gram.image_attack import gram_image_attack
    from instahide.attacks.replica import read_truth
    from instahide.attacks.view import AttackerView

    with released(encoded, settings, public=public, truth=truth) as files, progress_bar("reading"):
        release = read_release(needed(files, "encoded"), at_least=4)
        pool = read_public_images(needed(files, "public"), release.image_shape)
        known = None if files["truth"] is None else read_truth(files["truth"])
    law, scheme = law_and_scheme(release, num_mixed, num_private)
    view = AttackerView(release.images, None, law, scheme, pool, pool if scheme == "cross" else None)
    with progress_bar("searching encodings") as progress:
        result, recovery = gram_image_attack(
            view,
            n,
            truth=known,
            with_checks=checks,
            seed=seed,
            progress=progress,
            max_seconds=max_seconds,
        )
    images = recovery.images.numpy()
    store_arrays(
        out, "recovered.npz", images=images, pairs=recovery.pairs, coefficients=recovery.coefficients
    )
    finish(result, out, format, fail_on_leak)
