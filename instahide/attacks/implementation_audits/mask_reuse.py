"""Audit: is every sign mask fresh, in every encoding, channel and pixel?

Axes: N encodings, C channels, H×W pixels, d = C·H·W; s = sign of e, 0 where e = 0.

If masks are independent fair bits, so are the signs of e, whatever the images are; and so are products
t(p) = s(p)·s(p') of neighbours p, p' along rows (or along columns), because chains have no circles. Mixed
images are smooth: wherever a mask cancels out, what is left agrees with its neighbours. So each of::

    Σ_p s_i(p)·s_j(p),  Σ_p t_i(p)·t_j(p)      two encodings with one mask
    Σ_i Σ_p t_i(p)                             no mask, or one constant over neighbours
    Σ_i Σ_p s_i(p, c)·s_i(p, c'), and of t     one mask for two channels

is a sum of fair signs under fresh masks, exactly, and Hoeffding's bound gives the threshold for all
N(N−1)/2 pairs together at a false-alarm rate of 0.001: 7.1 standard deviations for 5,000 encodings. A
shared mask on photographs stands at 20 and more. All pairs are three matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..cost import Cost
from ..view import AttackResult
from .release import Release
from .statistics import FAMILY_FALSE_ALARM, fair_signs_threshold

MAX_ENCODINGS = 5000  # pairs are quadratic; more are sampled
_BLOCK_ROWS = 512
_KEPT_PAIRS = 1000

Progress = Callable[..., None]
Signs = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ReusedMasks:
    """Pairs of encodings with one mask.

    Args:
        pairs: (M, 2) row numbers, the plainest first, at most a thousand of them.
        number: of all pairs above the threshold.
        largest: the largest statistic, in standard deviations.
    """

    pairs: NDArray[np.int64]
    number: int
    largest: float


def reused_masks(signs: Signs, threshold: float, *, progress: Progress | None = None) -> ReusedMasks:
    """Compare all pairs of (N, C, H, W) signs; a pair counts if a statistic exceeds ``threshold``."""
    views = [signs.reshape(len(signs), -1), *neighbour_products(signs)]
    pairs: list[NDArray[np.int64]] = []
    strengths: list[NDArray[np.float32]] = []
    largest, number = 0.0, 0
    for top in range(0, len(signs), _BLOCK_ROWS):
        rows = slice(top, top + _BLOCK_ROWS)
        z = np.maximum.reduce([_scores(view[rows], view[top:]) for view in views])
        z = np.triu(z, 1)  # each pair once, none with itself
        i, j = np.nonzero(z > threshold)
        number += len(i)
        largest = max(largest, float(z.max(initial=0.0)))
        if sum(map(len, pairs)) < _KEPT_PAIRS:
            pairs.append(np.stack([i, j], axis=1) + top)
            strengths.append(z[i, j])
        if progress is not None:
            progress(min(top + _BLOCK_ROWS, len(signs)), len(signs), "comparing masks")
    order = np.argsort(-np.concatenate(strengths), kind="stable")[:_KEPT_PAIRS]
    return ReusedMasks(np.concatenate(pairs)[order], number, largest)


def neighbour_products(signs: Signs) -> tuple[Signs, Signs]:
    """Products of the signs of neighbours along rows, (N, C·H·(W − 1)), and along columns."""
    right = signs[..., :, 1:] * signs[..., :, :-1]
    below = signs[..., 1:, :] * signs[..., :-1, :]
    return right.reshape(len(signs), -1), below.reshape(len(signs), -1)


def audit_masks(release: Release, *, seed: int = 0, progress: Progress | None = None) -> AttackResult:
    """Look for masks that are reused, shared by channels, constant over neighbours, or missing.

    Args:
        seed: of the choice of encodings where there are more than 5,000.
    """
    with Cost() as cost:
        chosen = np.arange(len(release))
        if len(release) > MAX_ENCODINGS:
            chosen = np.sort(np.random.default_rng(seed).permutation(len(release))[:MAX_ENCODINGS])
        signs = np.sign(release.encodings[chosen]).astype(np.float32)
        N, C = signs.shape[:2]
        comparisons = 3 * N * (N - 1) // 2 + 2 + 3 * C * (C - 1) // 2
        threshold = fair_signs_threshold(comparisons)
        reused = reused_masks(signs, threshold, progress=progress)
        inside = max((_score_of_sum(part) for part in neighbour_products(signs)), key=abs)
        products = [signs[:, a] * signs[:, b] for a in range(C) for b in range(a)]
        smooth = [part for product in products for part in neighbour_products(product[:, None])]
        between = max((abs(_score_of_sum(part)) for part in products + smooth), default=0.0)
    faults = {
        "masks are used more than once": reused.number > 0,
        "neighbouring pixels have one sign, so the mask is missing or coarse": abs(inside) > threshold,
        "channels share a mask": between > threshold,
    }
    found = [text for text, is_so in faults.items() if is_so]
    return AttackResult(
        name="mask reuse",
        verdict=f"The sign masks are not fresh: {'; '.join(found)}." if found else
        "The signs look like fresh, independent bits.",
        leaked=bool(found),
        metrics={
            "pairs_with_one_mask": float(reused.number),
            "largest_pair_statistic": reused.largest,
            "neighbour_statistic": inside,
            "channel_statistic": between,
            "threshold": threshold,
        },
        intervals={},
        baselines={"false_alarm_rate": FAMILY_FALSE_ALARM},
        **cost.figures(),
        assumptions=("neighbouring pixels of the mixed images tend to have one sign",),
        settings={
            "num_encodings": N,
            "of": len(release),
            "pairs": chosen[reused.pairs[:20]].tolist(),
        },
        seed=seed,
    )  # fmt: skip


def _scores(left: Signs, right: Signs) -> Signs:
    """|Σ products| over the root of the number of non-zero terms, for all pairs of rows."""
    if left.all() and right.all():
        return np.asarray(np.abs(left @ right.T) / np.float32(np.sqrt(left.shape[1])))
    terms = np.abs(left) @ np.abs(right).T
    return np.asarray(np.abs(left @ right.T) / np.sqrt(np.maximum(terms, 1.0)))


def _score_of_sum(products: Signs) -> float:
    terms = float(np.count_nonzero(products))
    return float(products.sum(dtype=np.float64) / np.sqrt(max(terms, 1.0)))
