"""``instahide attack run membership``: is a known image inside one of these encodings?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import OutputFormat, progress_bar
from .shared import (
    Encoded,
    FailOnLeak,
    Format,
    Labels,
    NumMixed,
    NumPrivate,
    Out,
    finish,
    law_of_release,
)


def membership(
    encoded: Encoded,
    members: Annotated[
        Path, typer.Option(help="Images known to be inside, to measure how well they are told apart.")
    ],
    others: Annotated[Path, typer.Option(help="Images of the same kind known not to be inside.")],
    public: Annotated[Path, typer.Option(help="Further images of the same kind, for the attacker.")],
    pool: Annotated[
        Path | None, typer.Option(help="The public pool that was mixed in, if there was one.")
    ] = None,
    labels: Labels = None,
    num_mixed: NumMixed = None,
    num_private: NumPrivate = None,
    out: Out = None,
    format: Format = OutputFormat.text,
    fail_on_leak: FailOnLeak = False,
) -> None:
    """Tell whether known images are inside the encodings, and how reliably.

    The attacker holds candidate images. MEMBERS and OTHERS hold the truth and are
    used to score the attack only.

    Exit codes: 0 measured · 2 wrong input · 3 leaks, with --fail-on-leak ·
    4 damaged file.

    Example:

        instahide attack run membership --encoded e.npz --members in/ --others out/ --public pool.npz
    """
    import numpy as np

    from instahide.attacks.encodings_file import read_public_images, read_release
    from instahide.attacks.membership import known_image_membership
    from instahide.attacks.view import AttackerView
    from instahide.images import ImageSet

    with progress_bar("reading"):
        release = read_release(encoded, labels=labels)
        inside = read_public_images(members, release.image_shape)
        outside = read_public_images(others, release.image_shape)
        similar = read_public_images(public, release.image_shape)
        drawn_from = None if pool is None else read_public_images(pool, release.image_shape)
    law = law_of_release(release.config, num_mixed, num_private)
    scheme = release.scheme or ("inside" if drawn_from is None else "cross")
    view = AttackerView(release.images, None, law, scheme, similar, drawn_from)
    candidates = ImageSet(np.concatenate([inside.images, outside.images]))
    with progress_bar("scoring candidates"):
        result = known_image_membership(view, candidates, np.arange(len(candidates)) < len(inside))
    finish(result, out, format, fail_on_leak)
