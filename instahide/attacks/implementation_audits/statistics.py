"""Intervals and thresholds the audits share."""

from __future__ import annotations

import math

FAMILY_FALSE_ALARM = 1e-3
"""Chance that a test of this package calls a sound release weak, all its comparisons together."""


def wilson_interval(hits: int, trials: int, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); keeps inside [0, 1], also at 0 and all hits."""
    if trials == 0:
        return 0.0, 1.0
    share, spread = hits / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def fair_signs_threshold(comparisons: int, *, false_alarm: float = FAMILY_FALSE_ALARM) -> float:
    """z such that among so many sums of m fair signs one exceeds z·√m with chance ``false_alarm`` at most.

    Hoeffding's inequality, P(|sum| ≥ z·√m) ≤ 2·exp(−z²/2), holds for every m, and the union bound needs no
    independence of the sums.
    """
    return math.sqrt(2.0 * math.log(2.0 * max(1, comparisons) / false_alarm))


def binomial_tail_bound(hits: int, trials: int, chance: float) -> float:
    """An upper bound of P(at least ``hits`` of ``trials``): exp(−n·KL(hits/n ‖ chance)) (Chernoff)."""
    share = hits / trials
    if share <= chance:
        return 1.0
    divergence = share * math.log(share / chance)
    if share < 1.0:
        divergence += (1.0 - share) * math.log((1.0 - share) / (1.0 - chance))
    return math.exp(-trials * divergence)
