"""``instahide attack run dp-audit``: is a claimed epsilon contradicted by planted canaries?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import OutputFormat, progress_bar
from .shared import FailOnLeak, Format, MaxSeconds, Out, Seed, Settings, finish

if TYPE_CHECKING:
    from instahide.attacks.dp_audit import AuditFinding, Claim
    from instahide.attacks.view import AttackResult
    from instahide.encoder_config import EncoderConfig


class Mechanism(StrEnum):
    """What is audited."""

    encodings = "encodings"
    training = "training"


def dp_audit(
    mechanism: Annotated[
        Mechanism, typer.Option(help="encodings: mode dp of the encoder. training: DP-SGD.")
    ] = Mechanism.encodings,
    encoded: Annotated[
        Path | None,
        typer.Option(
            help="A folder of `instahide encode` in mode dp: audit its law and its number of releases.",
            metavar="DIR",
        ),
    ] = None,
    settings: Settings = None,
    target_epsilon: Annotated[
        float, typer.Option(help="Without these two: the law with the least noise that claims this.")
    ] = 4.0,
    target_delta: Annotated[float, typer.Option(help="Delta of the claim.")] = 1e-5,
    claimed_epsilon: Annotated[
        float | None,
        typer.Option(help="Test this epsilon instead.", show_default="what this package claims"),
    ] = None,
    noise_law: Annotated[str, typer.Option(help="gaussian or laplace.")] = "gaussian",
    num_mixed: Annotated[int, typer.Option(min=1, max=16, metavar="K", help="Images in one encoding.")] = 2,
    releases: Annotated[int, typer.Option(min=1, metavar="T", help="Encodings of each image.")] = 1,
    image_size: Annotated[int, typer.Option(min=2, metavar="N", help="Pixels a side of the canary.")] = 8,
    trials: Annotated[
        int, typer.Option(min=40, metavar="N", help="Runs of the encoder, or canaries in the training run.")
    ] = 4000,
    one_run: Annotated[bool, typer.Option("--one-run", help="Many canaries in a single run.")] = False,
    noise_multiplier: Annotated[float, typer.Option(help="Of the training run.")] = 1.0,
    sample_rate: Annotated[float, typer.Option(help="Of the training run.")] = 0.1,
    epochs: Annotated[int, typer.Option(min=1, help="Of the training run.")] = 3,
    power: Annotated[
        bool,
        typer.Option(
            "--power/--no-power", help="Plant faults, which must be found; takes 2 to 6 times longer."
        ),
    ] = True,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    out: Out = None,
    format: Format = OutputFormat.text,
    fail_on_leak: FailOnLeak = False,
) -> None:
    """Try to contradict a claimed epsilon with planted canaries.

    Only mode dp of the encoder and DP-SGD claim an epsilon; the other modes have
    none and are refused. With --settings the law, the number of releases and the
    size of the images are the file's; nothing is encoded but the canaries.
    "Not contradicted" is no proof: the lower bound says how much was seen, and the
    power check which planted faults were found.

    Exit codes: 0 audited · 2 wrong input · 3 refused, or contradicted with
    --fail-on-leak · 4 damaged file.

    Example:

        instahide attack run dp-audit --target-epsilon 4 --num-mixed 2
    """
    claim = None if claimed_epsilon is None else _flat_claim(claimed_epsilon, target_delta)
    with progress_bar("auditing") as on_progress:
        if mechanism is Mechanism.training:
            result = _audit_training(
                {
                    "noise_multiplier": noise_multiplier,
                    "sample_rate": sample_rate,
                    "num_canaries": trials,
                    "target_delta": target_delta,
                    "seed": seed,
                },
                epochs,
                claim,
                one_run,
                power,
                max_seconds,
                on_progress,
            )
        else:
            config, shape, releases = _law(
                encoded, settings, target_epsilon, target_delta, noise_law, num_mixed, releases, image_size
            )
            result = _audit_encodings(
                config,
                {
                    "image_shape": shape,
                    "releases": releases,
                    "claim": claim,
                    "target_delta": target_delta,
                    "seed": seed,
                },
                trials,
                one_run,
                power,
                max_seconds,
                on_progress,
            )
    finish(result, out, format, fail_on_leak)


def _law(
    encoded: Path | None,
    settings: Path | None,
    target_epsilon: float,
    target_delta: float,
    noise_law: str,
    num_mixed: int,
    releases: int,
    image_size: int,
) -> tuple[EncoderConfig, tuple[int, int, int], int]:
    """The law to audit, the canary's shape, and the releases."""
    from dataclasses import replace

    from instahide.encoder_config import EncoderConfig
    from instahide.encoding_guarantee import dp_config_for
    from instahide.errors import InvalidInputError

    if encoded is not None and settings is not None:
        raise InvalidInputError("--encoded and --settings name two laws", hint="give one of them")
    if settings is not None:
        from instahide.attacks.settings import read_settings
        from instahide.readers import load_images

        wanted = read_settings(settings)
        return wanted.encoding, load_images(wanted.private).image_shape, wanted.releases
    shape = (1, image_size, image_size)
    if encoded is not None:
        from instahide.manifest import read_manifest

        manifest = read_manifest(encoded)
        config = EncoderConfig.from_dict(manifest.law)
        return config, manifest.image_shape, manifest.epochs
    config = dp_config_for(
        target_epsilon=target_epsilon,
        target_delta=target_delta,
        image_shape=shape,
        num_classes=2,
        scheme="inside",
        noise_law=noise_law,
        releases=releases,
        num_mixed=num_mixed,
        num_private=num_mixed,
    )
    # Clipping would only hide from the audit what the noise lets through.
    return replace(config, output_range=max(1.0, 5 * config.noise_scale)), shape, releases


def _audit_encodings(
    config: EncoderConfig,
    options: dict[str, Any],
    trials: int,
    one_run: bool,
    power: bool,
    max_seconds: float | None,
    on_progress: Any,
) -> AttackResult:
    from instahide.attacks.dp_audit_encodings import (
        audit_encodings,
        audit_encodings_in_one_run,
        power_check,
    )

    if one_run:
        return audit_encodings_in_one_run(config, num_canaries=trials, **options)
    result = audit_encodings(
        config,
        trials=trials,
        max_seconds=max_seconds,
        progress=on_progress,
        **options,
    )
    if power:
        shape, seed = options["image_shape"], options["seed"]
        result.checks["power"] = _in_words(
            power_check(config, image_shape=shape, trials=trials, seed=seed + 1)
        )
    return result


def _audit_training(
    options: dict[str, Any],
    epochs: int,
    claim: Claim | None,
    one_run: bool,
    power: bool,
    max_seconds: float | None,
    on_progress: Any,
) -> AttackResult:
    import time

    import numpy as np

    from instahide.attacks.dp_audit_training import audit_training, power_check_training
    from instahide.images import ImageSet
    from instahide.models import ImageClassifier, build_model
    from instahide.training_config import TrainingConfig

    rng = np.random.default_rng(options["seed"])
    images = ImageSet(rng.integers(0, 256, (400, 1, 8, 8), dtype=np.uint8), np.arange(400) % 4)
    config = TrainingConfig(epochs=epochs, learning_rate=0.1, weight_decay=0.0, lr_schedule="constant")

    def model() -> ImageClassifier:
        return build_model("mlp", image_shape=(1, 8, 8), num_classes=4)

    started = time.perf_counter()
    result = audit_training(
        model(),
        images,
        config,
        claim=claim,
        one_run=one_run,
        progress=on_progress,
        should_stop=lambda: max_seconds is not None and time.perf_counter() - started > max_seconds,
        **options,
    )
    if power and not one_run:
        result.checks["power"] = _in_words(power_check_training(model, images, config, **options))
    return result


def _flat_claim(epsilon: float, delta: float) -> Claim:
    """A claim of one point: at any larger delta it claims no more than this epsilon either."""
    from instahide.attacks.dp_audit import Claim

    return Claim(delta, lambda _delta: epsilon, None, f"epsilon {epsilon:g} at delta {delta:g}, as given")


def _in_words(findings: dict[str, AuditFinding]) -> str:
    found = [f"{name}: {'found' if one.contradicted else 'missed'}" for name, one in findings.items()]
    return "planted faults, " + ", ".join(found)
