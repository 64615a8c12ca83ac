"""Audit: are the public sources drawn from the whole pool, or from its beginning?

Axes: N encodings, P public images, f features (e² averaged over blocks), u_j uses of public image j.

The published code took x_public[permutation(n)], so only the first n images of a pool of any size were
ever used: the "N^(k−2) guesses" an attacker was said to need shrink to n^(k−2). In the mean of e² every
use of image j adds E[λ²]·x_j²/N, so with S the covariance of x² over the pool::

    score_j = ⟨ mean_i e_i² − μ,  S⁻¹(x_j² − mean x²) ⟩                                            (1)

grows with u_j on average. If use does not depend on the place in the pool, scores are exchangeable
over places; the mean score of the first m images then has mean 0 and variance s²/m·(1 − m/P), with s²
the variance of the scores.
That is tested for beginnings of 1/64 to 1/2 of the pool and for each tenth of it, by permutation's normal
limit and Bonferroni at 0.001. It asks that the order of the pool says nothing about its contents: shuffle
a pool sorted by class before it is published and used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ..cost import Cost
from ..view import AttackResult
from .release import Release
from .statistics import FAMILY_FALSE_ALARM

MAX_FEATURES = 512
MIN_IMAGES = 10  # of the pool in a tested part: below, a mean of scores is not near normal
_RIDGE = 0.05
_CHUNK = 512


def audit_public_coverage(release: Release, *, progress: Callable[..., None] | None = None) -> AttackResult:
    """Compare the use of parts of the public pool."""
    if release.scheme != "cross":
        return _result(release, False, "No public images are mixed in.")
    pool = release.public_pool
    if pool is None or len(pool) < 4 * MIN_IMAGES:
        return _result(release, None, "The public pool was not given, so its use cannot be compared.")
    with Cost() as cost:
        scores = usage_scores(release, pool, progress=progress)
        z = {name: _standardised(scores, part) for name, part in _parts(len(pool)).items()}
        threshold = NormalDist().inv_cdf(1.0 - FAMILY_FALSE_ALARM / len(z))
    name, largest = max(z.items(), key=lambda item: item[1])
    found = largest > threshold
    verdict = (
        f"Public images come from a part of the pool: {name}." if found
        else "No part of the public pool was seen to be used more than the rest."
    )  # fmt: skip
    metrics = {"largest_statistic": largest, "threshold": threshold, "parts_compared": float(len(z))}
    return _result(release, found, verdict, metrics, cost)


def usage_scores(
    release: Release, pool: NDArray[np.uint8], *, progress: Callable[..., None] | None = None
) -> NDArray[np.float64]:
    """(P,) score (1) of each public image."""
    C, H, W = release.encodings.shape[1:]
    block = max(1, math.ceil(math.sqrt(C * H * W / MAX_FEATURES)))
    observed = _features(release.encodings, block).mean(axis=0)
    parts = []
    for top in range(0, len(pool), _CHUNK):
        images = pool[top : top + _CHUNK]
        values = np.stack([release.levels[c][images[:, c]] for c in range(C)], axis=1)
        parts.append(_features(values, block))
        if progress is not None:
            progress(top, len(pool), "reading the pool")
    public = np.concatenate(parts)
    centred = public - public.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    covariance[np.diag_indices_from(covariance)] += _RIDGE * np.trace(covariance) / len(covariance) + 1e-12
    # μ of (1) only moves all scores of images of one kind together; the pool's own mean is near enough.
    direction = np.linalg.solve(covariance, observed - observed.mean() * public.mean(axis=0) / public.mean())
    return np.asarray(centred @ direction)


def _features(values: NDArray[np.floating], block: int) -> NDArray[np.float64]:
    """(N, f) of squares averaged over block×block pixels."""
    N, C, H, W = values.shape
    h, w = H // block * block or H, W // block * block or W
    squares = values[:, :, :h, :w].astype(np.float64) ** 2
    if block > 1 and h >= block and w >= block:
        squares = squares.reshape(N, C, h // block, block, w // block, block).mean(axis=(3, 5))
    return squares.reshape(N, -1)


def _parts(count: int) -> dict[str, slice]:
    beginnings = [share for share in (64, 32, 16, 8, 4, 2) if count // share >= MIN_IMAGES]
    parts = {f"its first {count // share:,} images": slice(0, count // share) for share in beginnings}
    if count // 10 >= MIN_IMAGES:
        edges = np.linspace(0, count, 11).astype(int)
        for i in range(1, 10):
            parts[f"images {edges[i]:,} to {edges[i + 1] - 1:,}"] = slice(int(edges[i]), int(edges[i + 1]))
    return parts


def _standardised(scores: NDArray[np.float64], part: slice) -> float:
    inside = scores[part]
    m, P = len(inside), len(scores)
    deviation = float(scores.std(ddof=1)) * math.sqrt((1 - m / P) / m)
    return float((inside.mean() - scores.mean()) / max(deviation, 1e-300))


def _result(
    release: Release,
    leaked: bool | None,
    verdict: str,
    metrics: dict[str, float] | None = None,
    cost: Cost | None = None,
) -> AttackResult:
    return AttackResult(
        name="public coverage",
        verdict=verdict,
        leaked=leaked,
        metrics=metrics or {},
        intervals={},
        baselines={"false_alarm_rate": FAMILY_FALSE_ALARM},
        **(cost or Cost()).figures(),
        assumptions=(
            "the public pool is known, in the order the encoder used",
            "the order of the pool says nothing about what its images show",
        ),
        settings={
            "num_encodings": len(release),
            "pool": 0 if release.public_pool is None else len(release.public_pool),
        },
    )
