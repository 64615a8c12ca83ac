"""Lower bounds on epsilon from what an attacker got right: the statistics of auditing.

Axes: n runs in each of two worlds, m canaries of one run, r guesses.

**Two worlds, many runs** (Jagielski, Ullman, Oprea, NeurIPS 2020). A run's score exceeds a threshold with
rate TPR in one world and FPR in the neighbouring one. Any (ε, δ)-private mechanism has

    TPR ≤ e^ε·FPR + δ,    1 − FPR ≤ e^ε·(1 − TPR) + δ                                            (1)

so Clopper–Pearson limits of the rates bound ε from below, whatever the score was. Two thresholds are
tried, each at half the error: 0, where a log-likelihood ratio changes sides, on all runs; and the one
that does best on every other run, counted on the rest.

**A claimed curve** says more than one point: a Gaussian mechanism with sensitivity over noise μ has TPR ≤
Φ(Φ⁻¹(FPR) + μ) at every threshold (Dong, Roth, Su 2022), so Φ⁻¹(TPR) − Φ⁻¹(FPR) bounds μ from below (Nasr et
al., USENIX Security 2023). It refutes the claimed curve; read as an epsilon it presumes a Gaussian one.

**One run, many canaries** (Steinke, Nasr, Jagielski, NeurIPS 2023, theorem 5.2). Each of m canaries
goes in or not by its own fair coin; the attacker guesses r of the coins and gets v right. Under (ε, δ):

    P(≥ v right) ≤ f(v) + 2·m·δ·max_i (f(v − i) − f(v)) / i,    f(v) = P(Binomial(r, e^ε/(1 + e^ε)) ≥ v)   (2)

The largest ε for which (2) is below 1 − confidence is refuted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..privacy_curves import gaussian_epsilon

_THRESHOLDS = 200
_HIGHEST = 60.0


@dataclass(frozen=True, eq=False)
class Rates:
    """Counts at thresholds (t of them), and one-sided limits of the rates that hold together.

    Args:
        true_positives, false_positives: (t,) runs above each threshold, of ``positives`` and ``negatives``.
        confidence: of TPR's lower and FPR's upper limit at one threshold together.
    """

    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    positives: int
    negatives: int
    confidence: float

    def _limits(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        tail = (1 - self.confidence) / 2
        tpr, _ = clopper_pearson(self.true_positives, self.positives, tail)
        _, fpr = clopper_pearson(self.false_positives, self.negatives, tail)
        return tpr, fpr

    def epsilon(self, delta: float) -> NDArray[np.float64]:
        """(t,) the larger of the two bounds of (1), at least 0."""
        tpr, fpr = self._limits()
        best = np.maximum((tpr - delta) / fpr, (1 - fpr - delta) / (1 - tpr))
        return np.asarray(np.log(np.maximum(best, 1.0)))

    def mu(self) -> NDArray[np.float64]:
        """(t,) the lower bound on a Gaussian curve's μ, at least 0."""
        from scipy.special import ndtri

        tpr, fpr = self._limits()
        return np.asarray(np.maximum(ndtri(tpr) - ndtri(fpr), 0.0))


def clopper_pearson(
    successes: NDArray[np.int64] | int, trials: int, tail: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One-sided limits of a proportion, (lower, upper): each is wrong with probability at most ``tail``."""
    from scipy.special import betaincinv

    k = np.asarray(successes, dtype=np.float64)
    low = np.where(k == 0, 0.0, betaincinv(np.maximum(k, 1), trials - k + 1, tail))
    high = np.where(k == trials, 1.0, betaincinv(k + 1, np.maximum(trials - k, 1), 1 - tail))
    return np.asarray(low), np.asarray(high)


def epsilon_from_runs(
    inside: NDArray[np.float64], outside: NDArray[np.float64], delta: float, confidence: float = 0.95
) -> float:
    """Lower bound on ε at ``delta`` from scores of runs in either world; larger ones point to ``inside``."""
    return _best(inside, outside, confidence, lambda rates: rates.epsilon(delta))


def mu_from_runs(
    inside: NDArray[np.float64], outside: NDArray[np.float64], confidence: float = 0.95
) -> float:
    """Lower bound on the μ of a Gaussian trade-off curve."""
    return _best(inside, outside, confidence, Rates.mu)


def gaussian_epsilon_from_runs(
    inside: NDArray[np.float64], outside: NDArray[np.float64], delta: float, confidence: float = 0.95
) -> float:
    """``mu_from_runs`` read as ε at ``delta``; presumes that the curve is Gaussian."""
    return gaussian_epsilon(delta, mu_from_runs(inside, outside, confidence))


def _best(
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
    confidence: float,
    bound: Callable[[Rates], NDArray[np.float64]],
) -> float:
    """The larger of the bounds at threshold 0 and at the one that does best on the even runs."""
    if min(len(inside), len(outside)) < 4:
        return 0.0
    confidence = (1 + confidence) / 2
    at_zero = bound(_rates(inside, outside, np.zeros(1), confidence))
    candidates = np.quantile(np.concatenate([inside[::2], outside[::2]]), np.linspace(0, 1, _THRESHOLDS))
    on_even = bound(_rates(inside[::2], outside[::2], candidates, confidence))
    chosen = candidates[[int(on_even.argmax())]]
    return float(max(at_zero[0], bound(_rates(inside[1::2], outside[1::2], chosen, confidence))[0]))


def _rates(
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    confidence: float,
) -> Rates:
    above = [len(x) - np.searchsorted(np.sort(x), thresholds, side="right") for x in (inside, outside)]
    return Rates(above[0], above[1], len(inside), len(outside), confidence)


def epsilon_from_one_run(
    scores: NDArray[np.float64],
    coins: NDArray[np.bool_],
    delta: float,
    confidence: float = 0.95,
    shares: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0),
) -> float:
    """Lower bound on ε from one run: the m scores of canaries whose coins were ``coins``.

    The attacker guesses "in" for the largest and "out" for the smallest scores, for a share of all
    canaries; of several shares the best counts, each at a correspondingly higher confidence.
    """
    m, order = len(scores), np.argsort(scores, kind="stable")
    level, best = (1 - confidence) / len(shares), 0.0
    for share in shares:
        half = max(1, round(share * m / 2))
        if 2 * half > m:
            half = m // 2
        right = int(coins[order[m - half :]].sum() + (~coins[order[:half]]).sum())
        best = max(best, epsilon_from_guesses(right, 2 * half, m, delta, level))
    return best


def epsilon_from_guesses(right: int, guesses: int, num_canaries: int, delta: float, level: float) -> float:
    """The largest ε that ``right`` of ``guesses`` coins refute at significance ``level``; 0 if none."""
    if guesses == 0 or one_run_probability(0.0, right, guesses, num_canaries, delta) > level:
        return 0.0
    low, high = 0.0, _HIGHEST
    for _ in range(40):
        middle = (low + high) / 2
        if one_run_probability(middle, right, guesses, num_canaries, delta) > level:
            high = middle
        else:
            low = middle
    return low


def one_run_probability(epsilon: float, right: int, guesses: int, num_canaries: int, delta: float) -> float:
    """The right-hand side of (2): how likely so many right guesses can be under (ε, δ)."""
    from scipy.stats import binom

    q = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, q))
    steps = np.arange(1, right + 1)
    gained = np.cumsum(binom.pmf(right - steps, guesses, q)) / steps
    slope = float(gained.max()) if len(gained) else 0.0
    return min(1.0, tail + 2 * num_canaries * delta * slope)
