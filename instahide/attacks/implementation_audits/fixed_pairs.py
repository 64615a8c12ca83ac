"""Audit: does an image meet the same partners in every epoch?

Axes: N = n·T encodings, n images, T epochs, K classes, k_priv private sources.

Re-encoding with fresh coefficients but the same partners gives the attacker T equations in the same
unknowns, and the noise of an encoding averages out. Labels show it: the set of classes of a row (its
"support") is drawn anew each epoch under fresh partners, and stays under fixed ones. Two statistics::

    same place    share of rows whose support is that of the same row an epoch before (files in data order)
    clumping      Σ over supports of (count − expected)² / expected: T equal rows come as T, not one by one

are compared with 60 simulated releases that have the release's class shares, its law and fresh partners;
what lies six of their standard deviations above their mean is a finding. For anything near a normal
distribution that is a false-alarm rate below 10⁻⁶, for a chi-square with one degree of freedom 0.001.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...coefficients import draw_coefficients, mix_labels
from ...partners import draw_private_partners
from ...randomness import Randomness
from ..cost import Cost
from ..view import AttackResult
from .release import Release
from .statistics import FAMILY_FALSE_ALARM

SIMULATIONS = 60
THRESHOLD = 6.0
MAX_IMAGES = 5000  # of an epoch, in a simulation

Progress = Callable[..., None]


def supports_of(labels: NDArray[np.floating]) -> NDArray[np.int64]:
    """(N,) a number for each row that is the same for rows with the same set of classes."""
    present = np.packbits(labels > 0, axis=1)
    _, number = np.unique(present, axis=0, return_inverse=True)
    return number.reshape(-1).astype(np.int64)


def audit_fixed_pairs(release: Release, *, seed: int = 0, progress: Progress | None = None) -> AttackResult:
    """Tell fixed partners from fresh ones by the classes that labels show.

    Args:
        seed: of the classes of the simulated releases.
    """
    if release.labels is None or release.num_private < 2 or (release.labels > 0).any(axis=0).sum() < 2:
        return _result(
            release, None, "Labels of two classes and two private sources are needed to see partners."
        )
    if release.epochs == 1:
        return _result(release, False, "There is one epoch only, so no pair can come twice.")
    with Cost() as cost:
        T, n = release.epochs, min(len(release) // release.epochs, MAX_IMAGES)
        labels = release.labels.reshape(T, -1, release.labels.shape[1])[:, :n].reshape(T * n, -1)
        rng = np.random.default_rng(seed)
        frequencies = labels.astype(np.float64).mean(axis=0)
        simulated = []
        for i in range(SIMULATIONS):
            simulated.append(_statistics(_simulated_labels(release, frequencies, n, T, rng), T))
            if progress is not None:
                progress(i + 1, SIMULATIONS, "simulating fresh partners")
        observed = _statistics(labels, T)
    mean, spread = np.mean(simulated, axis=0), np.std(simulated, axis=0, ddof=1) + 1e-9
    z = (observed - mean) / spread
    usable = np.array([release.in_data_order, True])
    found = bool((z[usable] > THRESHOLD).any())
    metrics = {
        "same_place_share": float(observed[0]),
        "same_place_statistic": float(z[0]),
        "clumping": float(observed[1]),
        "clumping_statistic": float(z[1]),
        "threshold": THRESHOLD,
    }
    verdict = (
        "Images meet the same partners in every epoch."
        if found
        else "Partners look drawn afresh in every epoch."
    )
    baselines = {"same_place_share": float(mean[0]), "clumping": float(mean[1])}
    return _result(release, found, verdict, metrics, baselines, cost, seed)


def _statistics(labels: NDArray[np.floating], epochs: int) -> NDArray[np.float64]:
    """(2,) same place, clumping."""
    supports = supports_of(labels)
    by_epoch = supports.reshape(epochs, -1)
    same_place = (by_epoch[1:] == by_epoch[:-1]).mean()
    counts = np.bincount(supports).astype(np.float64)
    # A support of classes a, b, ... is expected about in proportion to the shares f_a·f_b·... of the classes.
    frequencies = labels.astype(np.float64).mean(axis=0)
    first = np.unique(supports, return_index=True)[1]
    log_share = np.where(labels[first] > 0, np.log(np.maximum(frequencies, 1e-12)), 0.0).sum(axis=1)
    sizes = (labels[first] > 0).sum(axis=1)
    clumping = 0.0
    for size in np.unique(sizes):
        of_size = sizes == size
        share = np.exp(log_share[of_size])
        expected = counts[of_size].sum() * share / share.sum()
        clumping += float(((counts[of_size] - expected) ** 2 / expected).sum())
    return np.array([same_place, clumping])


def _simulated_labels(
    release: Release, frequencies: NDArray[np.float64], n: int, epochs: int, rng: np.random.Generator
) -> NDArray[np.floating]:
    """Labels of a sound release of n images with these class shares."""
    config, private = release.config, release.num_private
    edges = np.rint(np.cumsum(frequencies) / frequencies.sum() * n).astype(np.int64)
    classes = rng.permutation(np.repeat(np.arange(len(edges)), np.diff(edges, prepend=0)))
    randomness = Randomness()
    rows = []
    for _ in range(epochs):
        partners = draw_private_partners(randomness.stream("partners"), n, private - 1)
        rows.append(np.concatenate([np.arange(n)[:, None], partners], axis=1))
    bounded = private if release.scheme == "cross" else None
    drawn = draw_coefficients(randomness.stream("coefficients"), n * epochs, config, num_private=bounded)
    mixed = mix_labels(classes[np.concatenate(rows)], drawn[:, :private], len(frequencies), config)
    return np.asarray(mixed.numpy())


def _result(
    release: Release,
    leaked: bool | None,
    verdict: str,
    metrics: dict[str, float] | None = None,
    baselines: dict[str, float] | None = None,
    cost: Cost | None = None,
    seed: int | None = None,
) -> AttackResult:
    return AttackResult(
        name="fixed pairs",
        verdict=verdict,
        leaked=leaked,
        metrics=metrics or {},
        intervals={},
        baselines={"false_alarm_rate": FAMILY_FALSE_ALARM, **(baselines or {})},
        **(cost or Cost()).figures(),
        assumptions=(
            "soft labels are published; an entry above zero is a class that was mixed in",
            "the number of epochs is published",
            "images of a class are as likely to be partners as their number says",
        ),
        settings={
            "num_encodings": len(release),
            "epochs": release.epochs,
            "in_data_order": release.in_data_order,
        },
        seed=seed,
    )
