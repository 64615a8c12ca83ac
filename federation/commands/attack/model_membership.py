"""``instahide attack run model-membership``: was a known image in the training data of a model?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import OutputFormat, progress_bar
from .shared import FailOnLeak, Format, MaxSeconds, Out, Seed, Settings, finish

if TYPE_CHECKING:
    from instahide.attacks.model_membership import ShadowRun
    from instahide.attacks.view import AttackResult
    from instahide.encoder_config import EncoderConfig
    from instahide.images import ImageSet


def model_membership(
    data: Annotated[
        Path | None,
        typer.Argument(help="Labelled images; each model learns from a random half.", show_default=False),
    ] = None,
    settings: Settings = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            help="Answers of your own target and shadow models, in an .npz (see Scores below).",
            metavar="FILE",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="mlp, small-cnn, resnet18 or resnet32.")] = "mlp",
    num_shadows: Annotated[int, typer.Option(min=4, help="Shadow models, an even number.")] = 32,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data of each model.")] = 30,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="At the first step.")] = 0.05,
    max_images: Annotated[int, typer.Option(min=20, help="Candidates at most, chosen at random.")] = 5000,
    encode: Annotated[
        bool, typer.Option("--encode", help="Train target and shadow models on encodings.")
    ] = False,
    releases: Annotated[
        int, typer.Option(min=1, metavar="T", help="With --encode: releases, taken in turn by the epochs.")
    ] = 1,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="With --encode: new encodings every epoch instead.")
    ] = False,
    num_mixed: Annotated[int, typer.Option(help="With --encode: images in one encoding.")] = 4,
    num_private: Annotated[int, typer.Option(help="With --encode and --public: private ones.")] = 2,
    mode: Annotated[str, typer.Option(help="With --encode: hardened, compat or mixup.")] = "hardened",
    public: Annotated[
        Path | None, typer.Option(help="With --encode: the pool to mix in.", metavar="PATH")
    ] = None,
    queries: Annotated[
        str, typer.Option(help="plain, or encoded (with --encode): the mean answer to ten encoded views.")
    ] = "plain",
    canaries: Annotated[
        int, typer.Option(min=0, help="Images given a wrong label, to check that the attack finds them.")
    ] = 50,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    out: Out = None,
    format: Format = OutputFormat.text,
    fail_on_leak: FailOnLeak = False,
) -> None:
    """Tell members of a model's training data from others: LiRA and RMIA with shadow models.

    With DATA, a target and shadow models are trained here, all alike: on plain
    images, or with --encode on encodings, as an attacker who knows the defence
    would. With --settings images, pool, law and releases of encodings are the file's.
    With --scores, numbers of your own models are judged.

    Scores: target_logits (M,K) with labels (M), or target_probabilities (M) of the
    right class; shadow_logits (S,M,K) or shadow_probabilities (S,M);
    shadow_members (S,M) true or false; is_member (M) if known.

    Exit codes: 0 measured · 1 a loss diverged · 2 wrong input · 3 leaks, with
    --fail-on-leak, or too little time.

    Examples:

        instahide attack run model-membership images.npz --num-shadows 32

        instahide attack run model-membership --scores answers.npz --format json
    """
    from instahide.attacks.model_membership import model_membership as judge
    from instahide.attacks.model_membership import read_scores_file, train_shadow_models
    from instahide.attacks.settings import read_settings
    from instahide.encoder_config import EncoderConfig
    from instahide.errors import InvalidInputError
    from instahide.training_config import TrainingConfig

    if [data, scores, settings].count(None) != 2:
        raise InvalidInputError("give images to train on, --settings or --scores", hint="one of the three")
    if scores is not None:
        finish(judge(*read_scores_file(scores), seed=seed), out, format, fail_on_leak)
        return
    law: EncoderConfig | None = None
    if settings is not None:
        if encode or public is not None:
            raise InvalidInputError("--settings says how to encode", hint="leave out --encode and --public")
        wanted = read_settings(settings)
        data, public, law, encode = wanted.private, wanted.public, wanted.encoding, True
        releases = wanted.releases
    assert data is not None
    if not encode and (public is not None or fresh or releases > 1 or queries == "encoded"):
        raise InvalidInputError(
            "--public, --releases, --fresh and encoded queries need --encode", hint="add --encode"
        )
    with progress_bar("reading"):
        images, pool = _read(data, public, max_images, seed)
    if encode and law is None:
        private = num_private if public is not None else num_mixed
        law = EncoderConfig(num_mixed=num_mixed, num_private=private, mode=mode)
    training = TrainingConfig(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    with progress_bar("training") as progress:
        run = train_shadow_models(
            images,
            num_shadows=num_shadows,
            model=model,
            training=training,
            law=law,
            public=pool,
            releases=releases,
            fresh_every_epoch=fresh,
            num_canaries=min(canaries, len(images) // 10),
            seed=seed,
            progress=progress,
            max_seconds=max_seconds,
        )
    finish(_judged(run, queries, seed), out, format, fail_on_leak)


def _read(data: Path, public: Path | None, max_images: int, seed: int) -> tuple[ImageSet, ImageSet | None]:
    """At most so many candidates, and the pool in their shape."""
    import numpy as np

    from instahide.attacks.encodings_file import read_public_images
    from instahide.readers import load_images

    images = load_images(data)
    if len(images) > max_images:
        images = images.subset(np.random.default_rng(seed).permutation(len(images))[:max_images])
    return images, None if public is None else read_public_images(public, images.image_shape)


def _judged(run: ShadowRun, queries: str, seed: int) -> AttackResult:
    from dataclasses import replace

    from instahide.attacks.model_membership import model_membership as judge

    canaries = run.canaries if run.canaries.any() else None
    result = judge(
        run.view(queries=queries),
        run.truth(),
        canaries=canaries,
        assumptions=run.assumptions(queries),
        settings=run.settings,
        seed=seed,
    )
    accuracy = {"accuracy_inside": run.accuracy_inside, "accuracy_outside": run.accuracy_outside}
    return replace(
        result, metrics=result.metrics | accuracy, cpu_seconds=result.cpu_seconds + run.cpu_seconds
    )
