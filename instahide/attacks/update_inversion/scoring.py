"""How close recovered inputs are to those behind the update; the only place where truth comes in.

Axes: n true images, m ≤ n recovered, K classes, C H W.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..image_metrics import score_recovery
from .inversion import Inversion

if TYPE_CHECKING:
    from ...images import ImageSet

EXACT = 1e-6  # mean square error on [−1, 1]: a hundredth of one grey level squared
MAX_PSNR = 200.0  # an infinite PSNR cannot be written as JSON
FEWEST_FOR_BOOTSTRAP = 8  # images; resampling fewer says nothing about others


def score_inversion(
    inversion: Inversion, images: torch.Tensor, labels: torch.Tensor | None = None
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """(metrics, intervals) of an inversion against the true inputs, one assignment for all metrics.

    Args:
        images: (n, C, H, W) the inputs as the site trained on them, in [−1, 1].
        labels: (n, K) their labels.
    """
    truth = images.abs() if inversion.absolute else images
    metrics, intervals, matched = compare(inversion.images, truth)
    if labels is not None and inversion.labels is not None and len(inversion.images):
        found = matched >= 0
        guessed = inversion.labels.argmax(1).numpy()[np.where(found, matched, 0)]
        metrics["label_accuracy"] = float(np.mean(found & (guessed == labels.argmax(1).numpy())))
        given = inversion.labels.numpy()[np.where(found, matched, 0)]
        metrics["label_error"] = float(np.abs(given - labels.numpy()).max(1).mean())
    return metrics, intervals


def compare(
    recovered: torch.Tensor, truth: torch.Tensor
) -> tuple[dict[str, float], dict[str, tuple[float, float]], NDArray[np.int64]]:
    """(metrics, intervals, match) of (m, C, H, W) against (n, C, H, W)."""
    if len(recovered) == 0:
        worst = {"mean_ssim": 0.0, "mean_psnr": 0.0, "mse": 1.0, "exact_share": 0.0}
        return worst, {}, np.full(len(truth), -1, dtype=np.int64)
    answer = recovered.float().clamp(-1, 1).numpy()
    original = truth.float().clamp(-1, 1).numpy()
    score = score_recovery(answer, original)
    found = score.matched >= 0
    partner = np.where(found, score.matched, 0)
    # An image nobody answered counts as a grey one.
    shown = np.where(found[:, None, None, None], answer[partner], np.float32(0))
    error = ((shown.astype(np.float64) - original) ** 2).mean(axis=(1, 2, 3))
    metrics = {
        "mean_ssim": score.mean_ssim,
        "mean_psnr": float(np.minimum(score.psnr, MAX_PSNR).mean()),
        "mse": float(error.mean()),
        "exact_share": float((error < EXACT).mean()),
        "share_above_0_7": score.share_above_0_7,
        "gradient_similarity": score.gradient_similarity,
        "identification_rate": score.identification_rate,
    }
    intervals = {"exact_share": _share_interval(int((error < EXACT).sum()), len(error))}
    if len(error) >= FEWEST_FOR_BOOTSTRAP:
        intervals["mean_ssim"] = score.mean_ssim_interval
    return metrics, intervals, score.matched


def _share_interval(count: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Clopper & Pearson 1934): exact, also at none and all."""
    from scipy.stats import beta

    low = 0.0 if count == 0 else float(beta.ppf(0.025, count, total - count + 1))
    high = 1.0 if count == total else float(beta.ppf(0.975, count + 1, total - count))
    return low, high


def baselines(truth: torch.Tensor, public: ImageSet | None, *, seed: int = 0) -> dict[str, float]:
    """What an attacker without the update scores: noise, and the mean of public images."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(truth.shape, generator=generator) * 2 - 1
    scores = {f"{name}_of_noise": value for name, value in compare(noise, truth)[0].items() if name in _SHOWN}
    if public is not None:
        from ...mixing import to_unit_range

        mean = to_unit_range(public.images[:2000]).mean(0)
        # Equal answers: which original each is matched to makes no difference.
        grey = compare(mean.expand_as(truth), truth)[0]
        scores |= {name: value for name, value in grey.items() if name in _SHOWN}
    return scores


_SHOWN = ("mean_ssim", "mean_psnr", "mse")
