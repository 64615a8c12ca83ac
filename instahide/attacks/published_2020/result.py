"""The published attack as a result: verdict, scores against the truth, baselines, null and power checks.

Axes: N encodings, n private images, C channels, H rows, W columns.

Without the truth a verdict needs a number the attacker can compute. Here it is the share of the variance of
|E| that the assignment explains on rows it was not fitted to (two halves, ridge regression on Λ)::

    evidence = 1 − Σ (|e| − |e| predicted from the other half)² / Σ (|e| − mean of the other half)²

Encodings were grouped by looking at the same |e|, so even a release in which no image occurs twice gives
some evidence. The null check attacks such a release, of the attacker's own mixtures, with the same
networks; the verdict asks for twice what it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...mixing import to_unit_range
from ..cost import Cost
from ..image_metrics import RecoveryScore, leaderboard_scores, score_recovery
from ..replica import Truth
from ..view import AttackerView, AttackResult
from .objective import mixing_matrix
from .own_release import OwnReleases
from .pipeline import (
    Networks,
    PipelineSettings,
    PublishedRecovery,
    check_attackable,
    pair_up,
    published_pipeline,
    train_networks,
)

RIDGE = 0.02  # of the mean diagonal of ΛᵀΛ
NULL_FACTOR = 2.0
LEAST_EVIDENCE = 0.01

Progress = Callable[..., None] | None


def published_2020(
    view: AttackerView,
    num_private_images: int,
    *,
    truth: Truth | None = None,
    settings: PipelineSettings | None = None,
    networks: Networks | None = None,
    seed: int = 0,
    max_seconds: float | None = None,
    check_null: bool = True,
    progress: Progress = None,
) -> tuple[AttackResult, PublishedRecovery]:
    """Run the published pipeline and say what it achieved.

    Args:
        view: encodings with labels, the law, public images.
        num_private_images: n.
        truth: what went in, for the scores; ``None``: the verdict rests on the evidence alone.
        check_null: also attack a release in which no image occurs twice.
    """
    settings = settings or PipelineSettings()
    check_attackable(view, num_private_images)
    with Cost() as cost:
        if networks is None and max_seconds is None:
            networks = train_networks(view, settings, seed=seed, progress=progress)
        recovery = published_pipeline(
            view,
            num_private_images,
            settings=settings,
            networks=networks,
            seed=seed,
            max_seconds=max_seconds,
            progress=progress,
        )
    found = evidence(view.encodings, recovery, num_private_images)
    baselines, checks = {}, {}
    if check_null and networks is not None:
        baselines["evidence"] = null_evidence(view, num_private_images, networks, seed=seed)
        checks["null"] = (
            f"on a release in which no image occurs twice the evidence is {baselines['evidence']:.3f}"
        )
    metrics: dict[str, float] = {
        "evidence": found,
        "share_of_images_with_a_group": recovery.num_groups / num_private_images,
        "share_of_positive_mixtures": recovery.share_positive,
    }
    intervals: dict[str, tuple[float, float]] = {}
    null = baselines.get("evidence")
    leaked = None if null is None else found > max(NULL_FACTOR * null, LEAST_EVIDENCE)
    if truth is not None:  # which scores, and never decides
        score = _add_scores(metrics, intervals, baselines, recovery, truth, view)
        checks["power"] = f"{score.identification_rate:.0%} of the known images are identified"
    result = AttackResult(
        name="published attack of 2020",
        verdict=_verdict(leaked),
        leaked=leaked,
        metrics=metrics,
        intervals=intervals,
        baselines=baselines,
        **cost.figures(),
        assumptions=_assumptions(view, num_private_images),
        settings=_settings(view, num_private_images, settings, recovery),
        seed=seed,
        checks=checks,
        pictures={"recovered": _as_bytes(recovery.images)},
    )
    return result, recovery


def evidence(encodings: torch.Tensor, recovery: PublishedRecovery, num_images: int) -> float:
    """Share of the variance of |E| explained on the other half of the rows; below 0 if nothing is."""
    return explained_share(
        encodings.abs().flatten(1).numpy(),
        mixing_matrix(recovery.private_rows, recovery.coefficients, num_images),
    )


def explained_share(magnitudes: NDArray[np.float32], mixing: NDArray[np.float32]) -> float:
    """Two-fold cross-validated R² of the regression of (N, d) magnitudes on Λ (N, n)."""
    residual, total = 0.0, 0.0
    halves = np.arange(len(mixing)) % 2
    for held in (0, 1):
        fit, test = halves != held, halves == held
        offset, centre = magnitudes[fit].mean(axis=0), mixing[fit].mean(axis=0)
        design = (mixing[fit] - centre).astype(np.float64)
        gram = design.T @ design
        gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / len(gram) + 1e-12
        slopes = np.linalg.solve(gram, design.T @ (magnitudes[fit] - offset))
        deviation = magnitudes[test] - offset
        residual += float(np.square(deviation - (mixing[test] - centre) @ slopes).sum())
        total += float(np.square(deviation).sum())
    return 1 - residual / total if total > 0 else 0.0


def null_evidence(view: AttackerView, num_images: int, networks: Networks, *, seed: int) -> float:
    """The evidence on as many own mixtures with the same labels, in which no image is meant to recur."""
    N = len(view.encodings)
    own = OwnReleases(view, seed=seed + 3).draw(N, 1)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(N))
    assert view.labels is not None  # the pipeline has asked for them
    null = replace(view, encodings=own.magnitudes, labels=view.labels[order])
    found = pair_up(null, num_images, networks=networks, seed=seed)
    return explained_share(
        own.magnitudes.flatten(1).numpy(), mixing_matrix(found.private_rows, found.coefficients, num_images)
    )


def answers_per_encoding(recovery: PublishedRecovery) -> NDArray[np.float32]:
    """(N, C, H, W): for each encoding the image with the larger coefficient, as the challenge asks for."""
    best = recovery.coefficients.argmax(axis=1)
    rows = recovery.private_rows[np.arange(len(best)), best]
    answers: NDArray[np.float32] = recovery.images[np.maximum(rows, 0)]
    answers[rows < 0] = 0
    return answers


def _add_scores(
    metrics: dict[str, float],
    intervals: dict[str, tuple[float, float]],
    baselines: dict[str, float],
    recovery: PublishedRecovery,
    truth: Truth,
    view: AttackerView,
) -> RecoveryScore:
    originals = to_unit_range(truth.images.images).numpy()
    score = score_recovery(recovery.images, originals)
    metrics.update(score.to_metrics())
    metrics.update(leaderboard_scores(answers_per_encoding(recovery), originals, truth.private_rows))
    intervals["mean_ssim"] = score.mean_ssim_interval
    mean = to_unit_range(view.public_images.images).mean(0, keepdim=True).expand(originals.shape)
    baselines["mean_ssim"] = score_recovery(mean.numpy(), originals).mean_ssim
    baselines["identification_rate"] = score.identification_chance
    return score


def _verdict(leaked: bool | None) -> str:
    if leaked is None:
        return "The attack ran; without the truth or a null check nothing can be said about its images."
    if leaked:
        return "The attack published in 2020 groups these encodings and rebuilds something of their images."
    return "Nothing recovered: the attack published in 2020 fails here. Stronger attacks may not."


def _assumptions(view: AttackerView, num_images: int) -> tuple[str, ...]:
    return (
        f"the attacker knows that there are {num_images} private images, each used about equally often",
        "soft labels are published and hold the coefficients",
        f"the attacker has {len(view.public_images)} images of the same kind",
        *(["the attacker knows the public pool"] if view.public_pool is not None else []),
        "the law of the encoder is public; coefficients, partners and sign masks are not",
        "private images are not augmented between releases",
        "the sign of a mixture is that of most mixtures: dark or bright pictures on their range",
    )


def _settings(
    view: AttackerView, num_images: int, settings: PipelineSettings, recovery: PublishedRecovery
) -> dict[str, Any]:
    return {
        "num_encodings": len(view.encodings),
        "num_private_images": num_images,
        "scheme": view.scheme,
        "config": view.config.to_dict(),
        "pair_network": vars(settings.pairs),
        "group_network": vars(settings.groups),
        "objective": vars(settings.objective),
        "colour": settings.colour,
        "seconds_by_stage": recovery.seconds,
    }


def _as_bytes(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.asarray(((images + 1) * 127.5).round().clip(0, 255), dtype=np.uint8)
