"""``instahide attack run public-sources``: which images of the public pool are inside each encoding?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import OutputFormat, progress_bar
from .shared import (
    Checks,
    Encoded,
    FailOnLeak,
    Format,
    MaxSeconds,
    NumMixed,
    NumPrivate,
    Out,
    Seed,
    Settings,
    finish,
    law_of_release,
    needed,
    released,
    store_arrays,
)


def public_sources(
    encoded: Encoded = None,
    public: Annotated[
        Path | None,
        typer.Option(help="The pool that was mixed in: a folder, or an .npz with x (uint8).", metavar="PATH"),
    ] = None,
    settings: Settings = None,
    similar: Annotated[
        Path | None,
        typer.Option(
            help="Further public images like the private ones.", metavar="PATH", show_default="the pool"
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="An .npz with public_rows (N,q), to score the attack only.", metavar="FILE"),
    ] = None,
    max_sources: Annotated[
        int | None, typer.Option(min=1, max=16, help="Most sources per encoding.", show_default="the law's")
    ] = None,
    false_discovery_rate: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="Expected share of false ones among those named.")
    ] = 0.02,
    checks: Checks = True,
    pool_sizes: Annotated[
        str,
        typer.Option(help="Also measure cost at these pool sizes, e.g. 500,1000,2000.", metavar="P,P,..."),
    ] = "",
    num_mixed: NumMixed = None,
    num_private: NumPrivate = None,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    out: Out = None,
    format: Format = OutputFormat.text,
    fail_on_leak: FailOnLeak = False,
) -> None:
    """Name the images of a known pool inside each encoding, with their weights.

    OUT/sources.npz holds rows (N,m; -1: none), coefficients and scores. Labels are
    not used and one release of each image is enough.

    Exit codes: 0 measured · 2 wrong input · 3 leaks, with --fail-on-leak ·
    4 damaged file.

    Example:

        instahide attack run public-sources --encoded e.npz --public pool.npz --out found/
    """
    import numpy as np

    from instahide.attacks.encodings_file import read_array, read_public_images, read_release
    from instahide.attacks.public_sources_attack import public_source_attack
    from instahide.attacks.view import AttackerView

    with released(encoded, settings, public=public, truth=truth) as files, progress_bar("reading"):
        release = read_release(needed(files, "encoded"))
        pool = read_public_images(needed(files, "public"), release.image_shape)
        truth = files["truth"]
        like_private = pool if similar is None else read_public_images(similar, release.image_shape)
        rows = None if truth is None else read_array(truth, ("public_rows",)).astype(np.int64)
    law = law_of_release(release.config, num_mixed, num_private)
    view = AttackerView(release.images, None, law, release.scheme or "cross", like_private, pool)
    with progress_bar("searching encodings") as progress:
        result, found = public_source_attack(
            view,
            truth=rows,
            max_sources=max_sources,
            false_discovery_rate=false_discovery_rate,
            with_checks=checks,
            pool_sizes=_whole_numbers(pool_sizes),
            seed=seed,
            progress=progress,
            max_seconds=max_seconds,
        )
    sources = {"rows": found.rows, "coefficients": found.coefficients, "scores": found.scores}
    store_arrays(out, "sources.npz", **sources)
    finish(result, out, format, fail_on_leak)


def _whole_numbers(text: str) -> list[int]:
    from instahide.errors import InvalidInputError

    try:
        return [int(word) for word in text.split(",") if word.strip()]
    except ValueError as error:
        raise InvalidInputError(f"pool sizes {text!r}", hint="whole numbers with commas: 500,1000") from error
