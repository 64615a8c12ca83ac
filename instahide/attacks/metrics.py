"""How good a membership score is: area under the ROC curve, true positives at few false, intervals.

Axes: P members (positives), Q non-members (negatives).

An average case hides what matters to the one patient who is recognised (Carlini et al. 2022,
section IV): the true-positive rate at 1 % and 0.1 % false positives stands beside the AUC, and ROC
curves are drawn on logarithmic axes. A rate of 0.1 % takes a thousand non-members to measure; with
fewer, the threshold is above all of them and the figure is the rate at *no* false positive.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError

Scores = NDArray[np.float64]
WORDS = {"auc": "AUC", "ssim": "SSIM", "psnr": "PSNR (dB)", "mse": "MSE", "lira": "LiRA", "rmia": "RMIA"}


def roc_auc(members: Scores, others: Scores) -> float:
    """Chance that a random member scores above a random non-member; a tie counts one half."""
    return float(_placements(members, others).mean())


def roc_auc_interval(members: Scores, others: Scores, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % interval of the AUC: DeLong's variance (DeLong et al. 1988) on the logit scale.

    The logit keeps the limits inside (0, 1). Where the classes separate perfectly the variance
    is 0 and says nothing; the exact one-sided limit for no error in min(P, Q) trials is used.
    """
    auc = roc_auc(members, others)
    variance = _variance(_placements(members, others)) + _variance(_placements(-others, -members))
    if variance == 0 or auc in (0.0, 1.0):
        slack = 1 - 0.025 ** (1 / min(len(members), len(others)))
        return max(0.0, auc - slack), min(1.0, auc + slack)
    half = z * math.sqrt(variance) / (auc * (1 - auc))
    logit = math.log(auc / (1 - auc))
    return 1 / (1 + math.exp(-(logit - half))), 1 / (1 + math.exp(-(logit + half)))


def true_positive_rate(members: Scores, others: Scores, *, false_positive_rate: float = 0.01) -> float:
    """Share of members above a threshold that at most this share of non-members exceeds.

    With Q non-members the threshold is the (floor(rate·Q) + 1)-th largest of their scores.
    """
    _check(members, others)
    if not 0 <= false_positive_rate < 1:
        raise InvalidInputError(
            f"false_positive_rate is {false_positive_rate}", hint="use a number in [0, 1)"
        )
    allowed = math.floor(false_positive_rate * len(others))
    return float((members > np.sort(others)[::-1][allowed]).mean())


def clopper_pearson(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson 1934): covers it at least as often as it says."""
    from scipy.special import betaincinv

    if not 0 <= successes <= trials or trials < 1:
        raise InvalidInputError(f"{successes} successes in {trials} trials", hint="0 <= successes <= trials")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - tail))
    return low, high


def true_positive_rate_interval(
    members: Scores, others: Scores, *, false_positive_rate: float = 0.01, level: float = 0.95
) -> tuple[float, float]:
    """Clopper-Pearson interval of :func:`true_positive_rate`, the threshold taken as it was found.

    What the non-members leave open is said by :func:`false_positive_rate_limit`.
    """
    rate = true_positive_rate(members, others, false_positive_rate=false_positive_rate)
    return clopper_pearson(round(rate * len(members)), len(members), level=level)


def false_positive_rate_limit(
    others: Scores, *, false_positive_rate: float = 0.01, level: float = 0.95
) -> float:
    """One-sided upper limit of the true false-positive rate at :func:`true_positive_rate`'s threshold.

    The threshold is an order statistic of the Q non-members, so the rate above it follows
    Beta(a + 1, Q − a), a the number allowed (exactly, if scores have a density).
    """
    from scipy.special import betaincinv

    allowed = math.floor(false_positive_rate * len(others))
    return float(betaincinv(allowed + 1, len(others) - allowed, level))


def roc_points(members: Scores, others: Scores, *, num_points: int = 60) -> list[tuple[float, float]]:
    """(false-positive rate, true-positive rate) at rates evenly spaced on a logarithmic axis.

    From one non-member's worth, 1/Q, to 1; a point (r, t) says that some threshold has a measured
    false-positive rate of at most r and a true-positive rate of t.
    """
    _check(members, others)
    Q = len(others)
    counts = np.unique(np.geomspace(1, Q, num_points).round().astype(np.int64))
    ordered = np.sort(others)[::-1]
    points = []
    for count in counts.tolist():
        share = 1.0 if count == Q else float((members > ordered[count]).mean())
        points.append((count / Q, share))
    return points


def _placements(members: Scores, others: Scores) -> Scores:
    """For each member, the share of non-members below it (ties one half)."""
    _check(members, others)
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left")
    up_to = np.searchsorted(ordered, members, side="right")
    return np.asarray((below + up_to) / (2 * len(others)), dtype=np.float64)


def _variance(placements: Scores) -> float:
    return float(placements.var(ddof=1) / len(placements)) if len(placements) > 1 else 0.0


def _check(members: Scores, others: Scores) -> None:
    if len(members) == 0 or len(others) == 0:
        raise InvalidInputError(
            f"{len(members)} members and {len(others)} non-members", hint="an ROC curve needs both"
        )
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise InvalidInputError(
            "scores are not all numbers", hint="score every candidate with a finite value"
        )


def in_words(name: str) -> str:
    """The name of a metric for people: ``tpr_at_1_percent_fpr`` is "true positives at 1 % false ones"."""
    words = name.replace("0_7", "0.7").replace("_", " ")
    words = re.sub(r"\btpr at ([\d.]+) percent fpr", r"true positives at \1 % false ones:", words)
    return " ".join(WORDS.get(word, word) for word in words.split()).removesuffix(":")
