"""Audit: is an image mixed with itself, so that an encoding holds fewer images than it says?

Axes: N encodings, k sources, m different ones among them, q pixels tested.

Where all sources of one class are one image, the label's m entries are the coefficients of m
*different* images, and every pixel solves |e| = |Σ_{j ≤ m} λ_j·x(p_j)| in 8-bit p_j (:mod:`.lattice`). Where
two different images share the class, hardly a pixel does: a wrong sum fits by chance with
μ ≈ 2·256^m·2δ / range, 0.0003 for m = 1 and 0.04 for m = 2 in float32. All of q = 64 pixels fit by
chance with μ^q: nothing. The smallest case, m = 1, needs no label: then |e| is a plain image.

Partners from independent permutations, as published, mix about one image an epoch and slot with itself.
Rounded values (``hardened``) fit anything, so there this cannot be decided from the release.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..cost import Cost
from ..view import AttackResult
from .lattice import decode_values, tolerance_of
from .release import Release
from .statistics import FAMILY_FALSE_ALARM

PIXELS = 64
MAX_CHANCE = 0.2  # of a wrong sum at one pixel; 64 pixels then leave 10⁻⁴⁵
MAX_ROWS = 5000


def audit_self_mixing(
    release: Release, *, seed: int = 0, progress: Callable[..., None] | None = None
) -> AttackResult:
    """Find encodings that are exact mixtures of fewer images than the law says.

    Args:
        seed: of the choice of pixels.
    """
    with Cost() as cost:
        rows = _suspects(release)
        tested = [row for row in rows if _chance(release, len(row[1])) <= MAX_CHANCE][:MAX_ROWS]
        rng = np.random.default_rng(seed)
        found = []
        for i, (row, coefficients) in enumerate(tested):
            if _fits(release, row, coefficients, rng):
                found.append(row)
            if progress is not None:
                progress(i + 1, len(tested), "testing encodings")
    undecided = not found and 2 * len(tested) < len(rows)
    share = len(found) / len(release)
    return AttackResult(
        name="self-mixing",
        verdict="Some encodings hold an image mixed with itself." if found else
        "Too many sources for the digits kept: an image mixed with itself could not be told."
        if undecided else "No encoding is a mixture of fewer images than the law says.",
        leaked=True if found else (None if undecided else False),
        metrics={
            "rows_with_fewer_images": float(len(found)),
            "share_of_rows": share,
            "rows_tested": float(len(tested)),
            "rows_with_coinciding_classes": float(len(rows)),
        },
        intervals={},
        baselines={"false_alarm_rate": FAMILY_FALSE_ALARM, "rows_by_plain_permutations": _expected(release)},
        **cost.figures(),
        assumptions=(
            "images were 8-bit, and the map from pixel to value before mixing is public",
            "soft labels are published, or all sources are one image",
        ),
        settings={"num_encodings": len(release), "pixels_a_row": PIXELS, "rows": found[:20]},
        seed=seed,
    )  # fmt: skip


def _suspects(release: Release) -> list[tuple[int, NDArray[np.float64]]]:
    """Rows that might hold fewer images, with the coefficients they would then have."""
    k = release.config.num_mixed
    if k == 1 or release.num_private < k:
        return []  # with public sources in it, no encoding is one of private images only
    if release.labels is None:
        return [(row, np.ones(1)) for row in range(len(release))]
    labels = release.labels.astype(np.float64)
    present = (labels > 0).sum(axis=1)
    return [(int(row), labels[row][labels[row] > 0]) for row in np.flatnonzero((present < k) & (present > 0))]


def _chance(release: Release, m: int) -> float:
    """μ: how many wrong sums of m images fit one value."""
    levels = release.levels
    span = float(levels.max() - levels.min())
    return 2.0 * 256.0**m * 2.0 * tolerance_of(release, m) / span if m <= 4 else np.inf


def _fits(release: Release, row: int, coefficients: NDArray[np.float64], rng: np.random.Generator) -> bool:
    """Whether q random pixels of a row are all exact sums; the first few pixels settle most rows."""
    C = release.encodings.shape[1]
    channel = int(rng.integers(C))
    values = release.encodings[row, channel].ravel().astype(np.float64)
    pixels = rng.permutation(len(values))[:PIXELS]
    levels = np.broadcast_to(release.levels[channel], (len(coefficients), 256))
    delta = tolerance_of(release, release.config.num_mixed)
    for part in (pixels[:4], pixels[4:]):
        if (decode_values(values[part], coefficients, levels, delta).candidates == 0).any():
            return False
    return True


def _expected(release: Release) -> float:
    """Fixed points of k − 1 independent permutations: one a slot and epoch."""
    return float((release.num_private - 1) * release.epochs)
