"""The Gram attack on a release of images: verdict, scores against the truth, checks.

Axes: N encodings, n private images, n' ≤ n recovered ones.

Scores are those of :mod:`instahide.attacks.image_metrics`, with one match for all of them; images that did
not come out count as 0. Checks, on releases the attacker makes:

* *power*: public images in the place of private ones, released as often under the same law;
* *null*: noise in the place of encodings; no star may come out of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from ...images import ImageSet
from ...mixing import to_unit_range
from ..cost import Cost
from ..image_metrics import RecoveryScore, score_recovery
from ..public_sources import PublicSources
from ..replica import Truth, make_replica
from ..view import AttackerView, AttackResult
from .whitened_images import WhitenedRecovery, recover_by_gram

NUM_CANARIES = 30
NUM_NOISE = 150
MAX_RELEASES = 12
LEAST_POWER = 0.2


def gram_image_attack(
    view: AttackerView,
    num_images: int,
    *,
    truth: Truth | None = None,
    sources: PublicSources | None = None,
    with_checks: bool = True,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
    max_seconds: float | None = None,
) -> tuple[AttackResult, WhitenedRecovery]:
    """Recover private images and say how well it went; arguments as :func:`recover_by_gram`.

    Args:
        truth: for the metrics only.
        with_checks: a few hundred further encodings are attacked.
    """
    with Cost() as cost:
        recovery = recover_by_gram(
            view, num_images, sources=sources, progress=progress, max_seconds=max_seconds
        )
    metrics = {
        "images_recovered": float(len(recovery.images)),
        "encodings_paired": float((recovery.pairs >= 0).all(axis=1).mean()),
    }
    intervals: dict[str, tuple[float, float]] = {}
    baselines: dict[str, float] = {}
    if truth is not None:
        score = score_images(recovery, truth)
        mean = view.public_images.images.astype(np.float64).mean(axis=0) / 127.5 - 1
        trivial = score_recovery(np.broadcast_to(mean, (num_images, *mean.shape)).copy(), _unit(truth.images))
        metrics |= _metrics(score) | {"pairs_right": pairs_right(recovery, truth, score)}
        intervals = {"mean_ssim": score.mean_ssim_interval}
        baselines = _metrics(trivial) | {"pairs_right": 2 / (num_images * (num_images - 1))}
    checks: dict[str, str] = {}
    power = math.nan
    if with_checks:
        power, checks["power"] = power_check(view, num_images, seed=seed)
        checks["null"] = null_check(view, num_images, seed=seed)
    leaked: bool | None = len(recovery.images) > 0
    if truth is not None:
        leaked = metrics["share_above_0_7"] > 0 or metrics["identification_rate"] > 0.1
    if not leaked and with_checks and not power >= LEAST_POWER:
        leaked = None
    result = AttackResult(
        name="gram, whitened images",
        verdict=_verdict(leaked, metrics, num_images),
        leaked=leaked,
        metrics=metrics,
        intervals=intervals,
        baselines=baselines,
        **cost.figures(),
        seed=seed,
        checks=checks,
        assumptions=(
            "an encoding holds two private images, and the number of private images is known",
            "the attacker holds the public pool exactly as it was mixed",
            f"{len(view.public_images)} public images stand for the statistics of all images",
            "images are released several times, as they are, without augmentation",
            "no labels are used; coefficients, pairs and sign masks are unknown",
        ),
        settings={
            "num_encodings": len(view.encodings),
            "num_images": num_images,
            "scheme": view.scheme,
            "null_spread": recovery.null_spread,
            "config": view.config.to_dict(),
        },
        pictures={"recovered": _as_bytes(recovery.images)} if len(recovery.images) else {},
    )
    return result, recovery


def score_images(recovery: WhitenedRecovery, truth: Truth) -> RecoveryScore:
    """The recovered images against all n originals."""
    return score_recovery(recovery.images.numpy(), _unit(truth.images))


def pairs_right(recovery: WhitenedRecovery, truth: Truth, score: RecoveryScore) -> float:
    """Share of the encodings whose two private images were both told, under the match of ``score``."""
    original = np.full(len(recovery.images) + 1, -1)  # the last one for "none"
    there = score.matched >= 0
    original[score.matched[there]] = np.flatnonzero(there)
    told = np.sort(original[recovery.pairs], axis=1)
    return float((told == np.sort(truth.private_rows, axis=1)).all(axis=1).mean())


def power_check(view: AttackerView, num_images: int, *, seed: int = 0) -> tuple[float, str]:
    """Mean SSIM on 30 public images, released as often as the private ones (12 times at most)."""
    images = view.public_images.images
    order = np.random.default_rng(seed).permutation(len(images))
    if len(images) < 3 * NUM_CANARIES:
        return math.nan, "not possible: too few public images to make a release of"
    releases = int(np.clip(round(len(view.encodings) / num_images), 1, MAX_RELEASES))
    hidden = ImageSet(images[order[:NUM_CANARIES]], np.zeros(NUM_CANARIES, dtype=np.int64))
    pool = ImageSet(images[order[NUM_CANARIES:]])
    made = make_replica(hidden, public=pool, config=view.config, releases=releases)
    recovery = recover_by_gram(made.view(view.public_images, show_labels=False), NUM_CANARIES)
    if len(recovery.images) == 0:
        return 0.0, f"of {NUM_CANARIES} public images, each released {releases} times, none came out"
    score = score_images(recovery, made.truth)
    return score.mean_ssim, (
        f"of {NUM_CANARIES} public images, each released {releases} times under the same law, "
        f"{score.share_above_0_7:.0%} came out recognisable (mean SSIM {score.mean_ssim:.2f})"
    )


def null_check(view: AttackerView, num_images: int, *, seed: int = 0) -> str:
    """How many images come out of noise of the release's size."""
    generator = torch.Generator().manual_seed(seed)
    count = min(NUM_NOISE, len(view.encodings))
    scale = view.encodings[:count].square().mean().sqrt()
    noise = scale * torch.randn((count, *view.encodings.shape[1:]), generator=generator)
    blank = AttackerView(noise, None, view.config, view.scheme, view.public_images, view.public_pool)
    found = len(recover_by_gram(blank, num_images).images)
    return f"from {count} encodings of pure noise {found} images came out"


def _unit(images: ImageSet) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.asarray(to_unit_range(images.images).numpy())


def _metrics(score: RecoveryScore) -> dict[str, float]:
    return {
        "mean_ssim": score.mean_ssim,
        "mean_psnr": score.mean_psnr,
        "share_above_0_7": score.share_above_0_7,
        "identification_rate": score.identification_rate,
    }


def _as_bytes(images: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())


def _verdict(leaked: bool | None, metrics: dict[str, float], num_images: int) -> str:
    if leaked is None:
        return "It could not be decided whether images can be recovered: the attack fails on its own test."
    if not leaked:
        return "Nothing was recovered."
    if "share_above_0_7" in metrics:
        return (
            f"Without labels, {metrics['share_above_0_7']:.0%} of the private images were recovered so that "
            "anyone would recognise them."
        )
    found = int(metrics["images_recovered"])
    return f"Without labels, pictures of {found} of {num_images} private images were put together."
