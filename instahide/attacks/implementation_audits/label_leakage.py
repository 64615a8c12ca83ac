"""Audit: what do the published soft labels say about the mixing?

Axes: N encodings, K classes, k sources, k_priv private ones.

The label of an encoding is Σ_j λ_j·onehot(y_j) over its private sources. So where their classes differ,
its entries *are* the coefficients: exactly so in the published law (float32, not renormalised), as shares
λ_j / Σλ rounded to a grid in ``hardened`` mode. Fewer entries than private sources say that two of them
are of one class. Rows that do not sum to one say how much of the encoding is private; with one
public source they give its coefficient too. In the inside scheme there is no public part to hide, so even
the ``hardened`` grid shows the coefficients as used, there multiples of 1/64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..cost import Cost
from ..view import AttackResult
from .release import Release

FLOAT32_STEP = 2.0**-24


def coefficients_from_labels(release: Release) -> NDArray[np.float64]:
    """(N, k) coefficients read off the labels, private sources in the order of their classes.

    NaN where the labels do not determine them: classes that coincide, several public sources, or labels
    divided by their private sum.
    """
    config, private = release.config, release.num_private
    k = config.num_mixed
    rows = np.full((len(release), k), np.nan)
    if release.labels is None or (release.scheme == "cross" and config.renormalizes_labels and private < k):
        return rows
    labels = release.labels.astype(np.float64)
    apart = (labels > 0).sum(axis=1) == private
    # A stable sort of "is zero" brings the k_priv non-zero entries to the front in class order.
    order = np.argsort(labels[apart] == 0, axis=1, kind="stable")[:, :private]
    rows[apart, :private] = np.take_along_axis(labels[apart], order, axis=1)
    if k - private == 1:
        rows[apart, private] = 1.0 - rows[apart, :private].sum(axis=1)
    return rows


def audit_labels(release: Release, *, true_private: NDArray[np.float64] | None = None) -> AttackResult:
    """Which of coefficients, public weight and same-class events the labels show.

    Args:
        true_private: (N, k_priv) coefficients in any order, to check the reading; scoring only.
    """
    with Cost() as cost:
        metrics, verdict, leaked = _read(release)
        if true_private is not None:
            metrics |= _score(release, true_private)
    return AttackResult(
        name="label leakage",
        verdict=verdict,
        leaked=leaked,
        metrics=metrics,
        intervals={},
        baselines={},
        **cost.figures(),
        assumptions=("soft labels are published beside the encodings", "the published law is the one used"),
        settings={"num_encodings": len(release), "scheme": release.scheme, "mode": release.config.mode},
    )


def _read(release: Release) -> tuple[dict[str, float], str, bool | None]:
    if release.labels is None:
        return {}, "No labels were published, so they show nothing.", False
    labels = release.labels.astype(np.float64)
    if not (labels > 0).any(axis=1).all():
        return {}, "Some labels are empty, so they are not those of a mixture.", None
    private = release.num_private
    present = (labels > 0).sum(axis=1)
    sums = labels.sum(axis=1)
    known = ~np.isnan(coefficients_from_labels(release)[:, :private]).any(axis=1)
    off_one = np.abs(sums - 1.0) > 1e-5
    metrics = {
        "rows_showing_all_private_coefficients": float(known.mean()),
        "rows_showing_the_public_weight": float(off_one.mean()),
        "rows_showing_a_same_class_event": float((present < private).mean()),
        "rows_showing_all_classes": float((present == private).mean()),
        "coefficient_resolution": _resolution(release),
    }
    if (present > private).any():
        return (
            metrics,
            "Labels have more classes than private sources: they were noised or mixed otherwise.",
            None,
        )
    if known.any() and private > 1:
        exact = (
            "exactly" if release.config.coefficient_grid is None else "to one part in 64, as they were used"
        )
        return metrics, f"The labels show the mixing coefficients {exact}.", True
    if off_one.any():
        return metrics, "The labels show how much of each encoding is private.", True
    if private == 1:
        return metrics, "The labels show the class of the one private image, and no coefficient.", False
    return (
        metrics,
        "The labels show the classes mixed and their shares of the private part, to one part in 64; the "
        "coefficients themselves and the public weight stay hidden."
        if release.config.coefficient_grid
        else "The labels show the classes mixed and their shares; the public weight is hidden.",
        False,
    )


def _resolution(release: Release) -> float:
    """The step in which label entries lie: 1/grid if all do, else that of their floating-point type."""
    assert release.labels is not None
    grid = release.config.coefficient_grid
    if grid is not None and (release.labels * grid == np.rint(release.labels * grid)).all():
        return 1.0 / grid
    return FLOAT32_STEP if release.labels.dtype == np.float32 else 2.0**-53


def _score(release: Release, true_private: NDArray[np.float64]) -> dict[str, float]:
    private = true_private.shape[1]
    read = np.sort(coefficients_from_labels(release)[:, :private], axis=1)
    truth = np.sort(true_private, axis=1)
    right = (np.abs(read - truth) <= FLOAT32_STEP).all(axis=1)  # comparisons with NaN are False
    return {"rows_with_coefficients_read_exactly": float(right.mean())}
