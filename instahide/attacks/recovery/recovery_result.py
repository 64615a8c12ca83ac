"""A recovery in words and numbers: the verdict, and its score where somebody holds the truth.

Axes: N encodings, n private images, C channels, H rows, W columns.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...mixing import to_unit_range
from ..image_metrics import leaderboard_scores, score_recovery, ssim_matrix
from ..view import AttackResult
from .pairing_evidence import MIN_SMOOTHNESS, Gain
from .recover import Recovery, RecoveryView

SHOWN = 24
DECOYS = 500
PUBLIC_TRIED = 1000


def recovery_result(
    view: RecoveryView,
    recovery: Recovery,
    *,
    truth: NDArray[np.uint8] | None = None,
    truth_rows: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> AttackResult:
    """The result of ``recovery``; scored if ``truth`` is given.

    Args:
        truth: (n, C, H, W) the private images, for the score only.
        truth_rows: (N, k_priv) which are in each encoding, for the leaderboard's score only.
        seed: the one the attack was run with.
    """
    metrics, intervals, baselines = _evidence(recovery), {}, {}
    pictures = {"recovered": _bytes(recovery.images[:SHOWN])}
    if truth is not None:
        originals = to_unit_range(truth).numpy()
        decoys = to_unit_range(view.release.public_images.images[-DECOYS:]).numpy()
        score = score_recovery(recovery.images.numpy(), originals, decoys=decoys)
        metrics = {**score.to_metrics(), **metrics}
        intervals = {"mean_ssim": score.mean_ssim_interval}
        baselines = _baselines(view, originals, score.identification_chance)
        if truth_rows is not None:
            rows = recovery.private_rows
            larger = rows[np.arange(len(rows)), recovery.coefficients.argmax(1)]
            metrics |= leaderboard_scores(recovery.images.numpy()[larger], originals, truth_rows)
        pictures = {
            "original, an encoding with it, recovered": _triples(view, recovery, truth, score.matched)
        }
    return AttackResult(
        name=f"recovery, tier {view.tier}" + ("" if view.release.public_pool is None else ", pool known"),
        metrics=metrics,
        intervals=intervals,
        **recovery.cost.figures(),
        assumptions=_assumptions(view),
        settings={
            "tier": view.tier,
            "pool_known": view.release.public_pool is not None,
            "pool_taken_out": recovery.pool_taken_out,
            "num_encodings": len(view.release.encodings),
            "num_private_images": view.num_private_images,
            "scheme": view.release.scheme,
            "config": view.config.to_dict(),
            "cpu_seconds_by_step": {name: round(value, 1) for name, value in recovery.seconds.items()},
        },
        verdict=verdict(recovery),
        leaked=recovery.leaked,
        baselines=baselines,
        seed=seed,
        checks=_checks(view, recovery),
        pictures=pictures,
    )


def verdict(recovery: Recovery) -> str:
    """One sentence, from what the attacker can know."""
    if recovery.leaked:
        reason = (
            "encodings that share an image agree about it"
            if recovery.gain is None
            else "what was recovered explains encodings the attack had not seen"
        )
        return f"the private images can be rebuilt from the encodings: {reason}"
    if recovery.smoothness <= MIN_SMOOTHNESS:
        return "nothing recovered: the encodings do not look like mixtures of images such as the public ones"
    if recovery.public_share >= 0.5:
        return "nothing recovered: what is in many encodings are public images"
    if recovery.leaked is None:
        return (
            "undecided: in so few encodings this attack does not find planted images either, so what it "
            "recovered may be right"
        )
    return "nothing recovered"


def _evidence(recovery: Recovery) -> dict[str, float]:
    values: dict[str, float] = {}
    if recovery.gain is not None:
        values["held_out_gain_nats"] = recovery.gain.mean
    if recovery.evidence is not None:
        values["evidence_z"] = float(recovery.evidence)
    return values


def _checks(view: RecoveryView, recovery: Recovery) -> dict[str, str]:
    if view.tier == "decode":
        return {}
    return {"power": _power(recovery), "null": _null(recovery)}


def _power(recovery: Recovery) -> str:
    if recovery.canaries is None:
        return "not run"
    found = "found" if recovery.canaries.exceeds(recovery.null) else "NOT found"
    return f"planted public images, encoded alike, are {found} (gain {_words(recovery.canaries)})"


def _null(recovery: Recovery) -> str:
    if recovery.null is None:
        return "not run"
    found = "something where there is nothing" if recovery.null.exceeds(None) else "nothing"
    return f"mixtures without a common image give {found} (gain {_words(recovery.null)})"


def _words(gain: Gain) -> str:
    return f"{gain.mean:.1f} ± {gain.standard_error:.1f} nats an encoding"


def _assumptions(view: RecoveryView) -> tuple[str, ...]:
    release = view.release
    given = {
        "decode": "which private images are in each encoding, and with which coefficients, is known",
        "label-only": "soft labels are published; which images are in an encoding is not known",
        "no-labels": "neither labels nor which images are in an encoding are known",
    }[view.tier]
    lines = [
        given,
        f"the law of the encoder and the number of private images ({view.num_private_images}) are known",
        f"the attacker has {len(release.public_images)} images of the same kind as the private ones",
        "the public pool is known" if release.public_pool is not None else "the public pool is not known",
        "images are encoded without augmentation, the same each time",
    ]
    if view.tier != "decode":
        lines.append("every private image is in the same number of encodings")
    return tuple(lines)


def _baselines(view: RecoveryView, originals: NDArray[np.float32], chance: float) -> dict[str, float]:
    """Without the release: the mean public image for all; the nearest public image, chosen with the truth."""
    public = to_unit_range(view.release.public_images.images)
    mean = public.mean(0, keepdim=True).numpy()
    nearest = ssim_matrix(originals, public[:PUBLIC_TRIED].numpy()).max(axis=1)
    return {
        "mean_ssim": float(ssim_matrix(originals, mean).mean()),
        "mean_ssim_of_nearest_public": float(nearest.mean()),
        "identification_rate": chance,
    }


def _triples(
    view: RecoveryView, recovery: Recovery, truth: NDArray[np.uint8], matched: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Original, an encoding that holds it as far as the attack knows, recovered; in turn."""
    sheets = []
    encodings = view.release.encodings
    for original, row in list(zip(truth, matched, strict=True))[:SHOWN]:
        inside = np.flatnonzero((recovery.private_rows == row).any(axis=1))
        place = int(inside[0]) if len(inside) else 0
        sheets += [original, _bytes(encodings[place]), _bytes(recovery.images[max(int(row), 0)])]
    return np.stack(sheets)


def _bytes(images: torch.Tensor) -> NDArray[np.uint8]:
    scaled = (images.detach().float().clamp(-1, 1) + 1) * 127.5
    return np.asarray(scaled.round().numpy().astype(np.uint8))
