"""Audit: does every encoding have coefficients of its own?

Axes: N encodings, k_priv private sources of a row, L lag between two rows.

The sorted entries of a label, its "weights", are drawn afresh for every encoding. In floating point
two rows with more than one class never share them by chance (48 bits against N²/2 pairs). On a grid
they often do, so runs are counted: that w rows in a row have the weights of the w rows L before has
chance p^w for a lag and a place, with p the chance that two rows agree; w is chosen so that N²/2
such events expect a thousandth. Published code re-used a batch's coefficients whenever the last
batch of an epoch was short, or took one coefficient vector for a whole batch.

p is the law's own, found by drawing from it with the release's classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...coefficients import draw_coefficients, mix_labels
from ...randomness import Randomness
from ..cost import Cost
from ..view import AttackResult
from .release import Release
from .statistics import FAMILY_FALSE_ALARM

MAX_ENCODINGS = 20_000  # lags are quadratic
_SIMULATED = 20_000
_FLOAT_CHANCE = 2.0**-40  # two float32 entries have 46 free bits or more
_MANY = 50.0  # times as many equal pairs as the law makes by chance: one vector serves many rows


def weights_of(labels: NDArray[np.floating]) -> NDArray[np.int64]:
    """(N,) a number for each row: equal numbers, equal sorted entries; −1 where one class stands alone."""
    ordered = np.sort(labels, axis=1)[:, ::-1]
    _, number = np.unique(ordered, axis=0, return_inverse=True)
    number = number.reshape(-1).astype(np.int64)
    number[(labels > 0).sum(axis=1) < 2] = -1
    return number


def longest_run(weights: NDArray[np.int64], window: int) -> tuple[int, int]:
    """How many places start a run of ``window`` rows equal to those a lag before; and the plainest lag."""
    total, best, best_lag = 0, 0, 0
    for lag in range(1, len(weights) - window + 1):
        equal = (weights[lag:] == weights[:-lag]) & (weights[lag:] >= 0)
        if np.count_nonzero(equal) < window:
            continue
        sums = np.concatenate([[0], np.cumsum(equal)])
        runs = int(np.count_nonzero(sums[window:] - sums[:-window] == window))
        total += runs
        if runs > best:
            best, best_lag = runs, lag
    return total, best_lag


def audit_coefficients(release: Release, *, progress: Callable[..., None] | None = None) -> AttackResult:
    """Look for rows, batches or whole releases that share their coefficients."""
    if release.labels is None or release.num_private < 2 or len(release) < 3:
        return _result(
            release, None, "Labels of at least two private sources are needed to compare coefficients."
        )
    with Cost() as cost:
        labels = release.labels[:MAX_ENCODINGS]
        weights = weights_of(labels)
        usable = int((weights >= 0).sum())
        chance = _chance_of_equal_weights(release)
        pairs = len(labels) ** 2 / 2
        window = (
            max(1, math.ceil(math.log(pairs / FAMILY_FALSE_ALARM) / -math.log(chance)))
            if chance < 1
            else len(labels)
        )
        runs, lag = longest_run(weights, window)
        _, counts = np.unique(weights[weights >= 0], return_counts=True)
        equal_pairs = float((counts * (counts - 1) / 2).sum())
        expected = chance * usable * (usable - 1) / 2
        constant = equal_pairs > _MANY * max(expected, 1.0)
        if progress is not None:
            progress(1, 1, "comparing coefficients")
    found = bool(runs or constant)
    verdict = (
        f"Coefficients are used again {lag} rows later." if runs and not constant else
        "The same few coefficients serve most encodings." if constant else
        "No encoding was seen to share its coefficients with another beyond chance."
    )  # fmt: skip
    metrics = {
        "rows_compared": float(usable),
        "equal_pairs": equal_pairs,
        "equal_pairs_by_chance": expected,
        "runs": float(runs),
        "run_length_needed": float(window),
    }
    return _result(release, found if usable >= 2 else None, verdict, metrics, cost)


def _chance_of_equal_weights(release: Release) -> float:
    """Chance that two rows of the published law, both with several classes, have equal weights."""
    config, private = release.config, release.num_private
    if config.coefficient_grid is None:
        return _FLOAT_CHANCE
    stream = Randomness().stream("coefficients")
    drawn = draw_coefficients(
        stream, _SIMULATED, config, num_private=private if release.scheme == "cross" else None
    )[:, :private]
    assert release.labels is not None
    frequencies = release.labels.astype(np.float64).mean(axis=0)
    classes = np.random.default_rng(0).choice(
        len(frequencies), size=drawn.shape, p=frequencies / frequencies.sum()
    )
    weights = weights_of(mix_labels(classes, drawn, len(frequencies), config).numpy())
    weights = weights[weights >= 0]
    if len(weights) < 2:
        return 1.0
    _, counts = np.unique(weights, return_counts=True)
    return float((counts * (counts - 1)).sum() / (len(weights) * (len(weights) - 1)))


def _result(
    release: Release,
    leaked: bool | None,
    verdict: str,
    metrics: dict[str, float] | None = None,
    cost: Cost | None = None,
) -> AttackResult:
    return AttackResult(
        name="coefficient reuse",
        verdict=verdict,
        leaked=leaked,
        metrics=metrics or {},
        intervals={},
        baselines={"false_alarm_rate": FAMILY_FALSE_ALARM},
        **(cost or Cost()).figures(),
        assumptions=(
            "soft labels are published",
            "rows are in the order in which they were encoded, or a re-use is of equal floating-point values",
        ),
        settings={"num_encodings": len(release), "compared": min(len(release), MAX_ENCODINGS)},
    )
