"""``instahide attack challenge``: a public challenge with a sealed truth, scored by anyone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import OutputFormat, print_json, progress_bar
from .shared import Format

app = typer.Typer(help="Make or score a public challenge with a sealed truth.", no_args_is_help=True)


@app.callback()
def challenge() -> None:
    """Make or score a public challenge with a sealed truth."""


@app.command("make")
def make(
    private: Annotated[Path, typer.Argument(help="Labelled images; some of them are chosen and encoded.")],
    out: Annotated[Path, typer.Option("--out", help="New or empty folder.", metavar="DIR")],
    tier: Annotated[
        str, typer.Option(help="2020, few-releases, once, eight-bit, inside, many-images or hardened.")
    ],
    public: Annotated[
        Path | None, typer.Option(help="Pool to mix in.", show_default="half of the images not chosen")
    ] = None,
    format: Format = OutputFormat.text,
) -> None:
    """Encode images under a tier; seal the truth under a key to publish after the deadline.

    DIR/public is the challenge; DIR/opening-key.txt stays with you until the
    deadline. Which images are chosen comes from the system's randomness; take
    images that nobody else has, or they can be looked up instead of recovered.

    Exit codes: 0 written · 2 wrong input.

    Example:

        instahide attack challenge make cifar10.npz --tier 2020 --out challenge/
    """
    import secrets

    import numpy as np

    from instahide.attacks.challenge import TIERS, make_challenge
    from instahide.attacks.settings import choose_evenly
    from instahide.errors import InvalidInputError
    from instahide.images import ImageSet
    from instahide.readers import load_images

    if tier not in TIERS:
        raise InvalidInputError(f"there is no tier {tier!r}", hint=f"use one of {', '.join(TIERS)}")
    images = load_images(private)
    count = TIERS[tier].num_private_images
    if images.labels is None or len(images) < count:
        raise InvalidInputError(
            f"{private} has {len(images)} images; tier {tier} needs {count}, with labels", hint="give more"
        )
    chosen = choose_evenly(images.labels, count, secrets.randbits(63))
    rest = np.setdiff1d(np.arange(len(images)), chosen)
    half = np.random.default_rng(secrets.randbits(63)).permutation(rest)[: len(rest) // 2]
    C, H, W = images.image_shape
    pool = (
        ImageSet(images.images[half])
        if public is None
        else ImageSet(load_images(public, image_size=H if H == W else None, channels=C).images)
    )
    with progress_bar("encoding"):
        document = make_challenge(tier, images.subset(chosen), pool, out)
    if format is OutputFormat.json:
        print_json({**document, "out": str(out)})
        return
    typer.echo(f"challenge {tier} ({document['words']}) written to {out / 'public'}")
    typer.echo(f"keep {out / 'opening-key.txt'} until the deadline, then publish it")


@app.command("score")
def score(
    challenge: Annotated[
        Path, typer.Argument(help="The published folder, with challenge.json.", metavar="DIR")
    ],
    key: Annotated[Path, typer.Option(help="The opening key, once published.")],
    recovered: Annotated[Path, typer.Option(help="An .npz with images (n,C,H,W) in [-1,1].", metavar="FILE")],
    format: Format = OutputFormat.text,
) -> None:
    """Open the sealed truth, verify it against the encodings, and score an answer.

    Exit codes: 0 scored · 2 wrong input · 4 wrong key, changed file, or a truth
    the encodings do not come from.

    Example:

        instahide attack challenge score challenge/public --key key.txt --recovered recovered.npz
    """
    from instahide.attacks.challenge import read_key, score_answer
    from instahide.attacks.encodings_file import read_array

    images = read_array(recovered, ("images", "recovered", "x"))
    result = score_answer(challenge, read_key(key), images)
    if format is OutputFormat.json:
        print_json(result)
        return
    low, high = result["mean_ssim_interval"]
    typer.echo("the truth is the committed one, and the encodings come from it")
    typer.echo(
        f"mean SSIM {result['mean_ssim']:.3f} ({low:.3f} to {high:.3f}), PSNR {result['mean_psnr']:.1f} dB"
    )
    typer.echo(
        f"identified {result['identification_rate']:.0%} (by chance {result['identification_chance']:.0%}), "
        f"above SSIM 0.7 {result['share_above_0_7']:.0%}"
    )
    both = result["leaderboard_2020"]
    typer.echo(
        f"as the leaderboard of 2020: Max-SSIM {both['max_ssim']:.3f}, "
        f"Mean-SSIM {both['mean_ssim_of_both']:.3f} (at most about 0.5)"
    )
