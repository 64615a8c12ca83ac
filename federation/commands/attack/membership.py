"""``instahide attack run membership``: is a known image inside one of these encodings?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    Pool,
    Seed,
    Settings,
    finish,
    law_of_release,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from instahide.attacks.view import AttackerView
    from instahide.images import ImageSet


def membership(
    encoded: Encoded = None,
    members: Annotated[
        Path | None, typer.Option(help="Images known to be inside, to measure how well they are told apart.")
    ] = None,
    others: Annotated[
        Path | None, typer.Option(help="Images of the same kind known not to be inside.")
    ] = None,
    public: Annotated[
        Path | None, typer.Option(help="Further images of the same kind, for the attacker.")
    ] = None,
    pool: Pool = None,
    settings: Settings = None,
    labels: Labels = None,
    num_mixed: NumMixed = None,
    num_private: NumPrivate = None,
    mode: Annotated[str, typer.Option(help="The law's mode, where the release does not say it.")] = "compat",
    releases: Annotated[int, typer.Option(min=1, help="Encodings of each image in the release, T.")] = 1,
    queries: Annotated[
        bool, typer.Option("--queries", help="The encodings are inference queries, not training data.")
    ] = False,
    search: Annotated[
        bool, typer.Option("--search/--no-search", help="Search the known pool and candidates together.")
    ] = True,
    copies: Annotated[
        bool, typer.Option("--copies", help="Measure with shifted, cropped, brightened, compressed copies.")
    ] = False,
    register: Annotated[
        int, typer.Option(min=0, max=4, help="With --copies: also try offsets of up to so many pixels.")
    ] = 0,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    out: Out = None,
    format: Format = OutputFormat.text,
    fail_on_leak: FailOnLeak = False,
) -> None:
    """Tell whether known images are inside the encodings, and how reliably.

    The attacker holds candidate images. MEMBERS and OTHERS hold the truth and are
    used to score the attack only. Labels in both (y) are used if the release has
    labels. A thousand OTHERS or more are needed to measure 0.1 % false positives.

    Exit codes: 0 measured · 2 wrong input · 3 leaks, with --fail-on-leak ·
    4 damaged file.

    Examples:

        instahide attack run membership --encoded e.npz --members in/ --others out/ --public pool.npz

        instahide attack run membership --settings law.toml --format json
    """
    from instahide.attacks.membership import known_image_membership
    from instahide.attacks.membership_perturbed import membership_by_copy
    from instahide.errors import InvalidInputError

    with progress_bar("reading"):
        if settings is not None:
            view, candidates, inside, releases = _of_settings(settings)
        elif encoded is None or members is None or others is None or public is None:
            raise InvalidInputError(
                "--encoded, --members, --others and --public are needed together",
                hint="or give --settings FILE, and a release is made",
            )
        else:
            law = (labels, num_mixed, num_private, mode)
            view, candidates, inside = _of_files(encoded, members, others, public, pool, *law)
    role = "query" if queries else "training"
    uses = 1 if queries else min(len(view.encodings), releases * view.config.num_private)
    with progress_bar("scoring candidates") as progress:
        if copies:
            result = membership_by_copy(
                view,
                candidates,
                inside,
                register=register,
                uses=uses,
                role=role,
                seed=seed,
                progress=progress,
            )
        else:
            result = known_image_membership(
                view,
                candidates,
                inside,
                uses=uses,
                role=role,
                search=None if search else False,
                seed=seed,
                progress=progress,
                max_seconds=max_seconds,
            )
    finish(result, out, format, fail_on_leak)


def _of_files(
    encoded: Path,
    members: Path,
    others: Path,
    public: Path,
    pool: Path | None,
    labels: Path | None,
    num_mixed: int | None,
    num_private: int | None,
    mode: str,
) -> tuple[AttackerView, ImageSet, NDArray[np.bool_]]:
    from instahide.attacks.encodings_file import read_public_images, read_release
    from instahide.attacks.view import AttackerView

    release = read_release(encoded, labels=labels)
    shape = release.image_shape
    candidates, inside = _together(_read(members, shape), _read(others, shape))
    similar = read_public_images(public, shape)
    drawn_from = None if pool is None else read_public_images(pool, shape)
    law = law_of_release(release.config, num_mixed, num_private, mode=mode)
    scheme = release.scheme or ("inside" if drawn_from is None else "cross")
    soft = release.labels if _fits(candidates, release.labels) else None
    return AttackerView(release.images, soft, law, scheme, similar, drawn_from), candidates, inside


def _of_settings(path: Path) -> tuple[AttackerView, ImageSet, NDArray[np.bool_], int]:
    """A release as the file says; of the images left over half are the attacker's, half strangers."""
    import numpy as np

    from instahide.attacks.settings import read_settings, rehearse

    wanted = read_settings(path)
    made = rehearse(wanted)
    own, strangers = np.array_split(np.random.default_rng(wanted.seed).permutation(len(made.others)), 2)
    candidates, inside = _together(made.replica.truth.images, made.others.subset(strangers))
    return made.replica.view(made.others.subset(own)), candidates, inside, wanted.releases


def _read(path: Path, shape: tuple[int, int, int]) -> ImageSet:
    from instahide.errors import InvalidInputError
    from instahide.readers import load_images

    C, H, W = shape
    images = load_images(path, image_size=H if H == W else None, channels=C)
    if images.image_shape != shape:
        raise InvalidInputError(
            f"{path} holds images of {images.image_shape}, the encodings are {shape} (C, H, W)",
            hint="resize them to the encodings' shape",
        )
    return images


def _together(members: ImageSet, others: ImageSet) -> tuple[ImageSet, NDArray[np.bool_]]:
    import numpy as np

    from instahide.images import ImageSet

    labels = None
    if members.labels is not None and others.labels is not None:
        labels = np.concatenate([members.labels, others.labels])
    candidates = ImageSet(np.concatenate([members.images, others.images]), labels)
    return candidates, np.arange(len(candidates)) < len(members)


def _fits(candidates: ImageSet, labels: object) -> bool:
    """Whether class numbers of the candidates are columns of the release's labels."""
    width = 0 if labels is None else int(labels.shape[1])  # type: ignore[attr-defined]
    return candidates.labels is not None and int(candidates.labels.max()) < width
