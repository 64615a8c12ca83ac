"""DP audit: do planted canaries contradict the epsilon that was claimed?

A proof of differential privacy is about an algorithm; what runs is a program. An audit plants canaries,
the worst neighbours the proof allows, lets an attacker who knows everything but one coin guess it, and
turns what was guessed right into a *lower* bound on epsilon (:mod:`.epsilon_bounds`). Above the claim,
the claim is false: a scale is wrong, a composition was forgotten, a clip is missing. Below it nothing is
proved; how far below says how much the audit could have seen, and the power checks plant such faults
and must find them.

:mod:`.dp_audit_encodings` audits mode ``dp`` of the encoder, :mod:`.dp_audit_training` DP-SGD. Both hand
their scores to :func:`judge`. What is tested is the whole claimed curve, by μ or at several δ: a claim of
mode ``dp`` or DP-SGD is a curve, of which the printed (ε, δ) is one point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cost import Cost
from .epsilon_bounds import epsilon_from_one_run, epsilon_from_runs, mu_from_runs
from .view import AttackResult

CONFIDENCE = 0.95
EXTRA_DELTAS = (0.01, 0.1, 0.3)
"""Besides the claim's own δ: where many runs are few for a small ε, larger δ show a wrong curve sooner."""


@dataclass(frozen=True)
class Claim:
    """What a mechanism says of itself.

    Args:
        delta: where ``curve`` is quoted.
        curve: δ → claimed ε, for any δ.
        mu: of a mechanism whose claimed curve is Gaussian; else ``None``.
        words: what the claim counts, in a sentence.
    """

    delta: float
    curve: Callable[[float], float] = field(repr=False)
    mu: float | None = None
    words: str = ""

    @property
    def epsilon(self) -> float:
        """The claimed ε at the claim's δ."""
        return self.curve(self.delta)


@dataclass(frozen=True, eq=False)
class CanaryScores:
    """All that an audit's attacker ends up with.

    Args:
        scores: one per canary; larger points to the coin being True.
        coins: the truth, for counting.
        kind: ``"runs"`` (scores are independent runs of the mechanism) or ``"one-run"``.
    """

    scores: NDArray[np.float64]
    coins: NDArray[np.bool_]
    kind: str


@dataclass(frozen=True)
class AuditFinding:
    """Lower bounds, each beside what is claimed.

    Args:
        epsilon: lower bound at the claim's δ, without any assumption on the mechanism.
        by_delta: (δ, lower bound, claimed ε), at jointly 95 % confidence with ``mu``.
        mu: lower bound on a Gaussian curve's μ; ``None`` where the claim is no such curve.
        contradicted: one of the bounds lies above the claim.
    """

    epsilon: float
    by_delta: tuple[tuple[float, float, float], ...]
    mu: float | None
    contradicted: bool


def judge(found: CanaryScores, claim: Claim) -> AuditFinding:
    """Lower bounds from scores and coins, at 95 % confidence in all, against a claim."""
    use_mu = claim.mu is not None and found.kind == "runs"  # then μ says what further δ would say
    deltas = [claim.delta] + [delta for delta in EXTRA_DELTAS if delta > claim.delta and not use_mu]
    confidence = 1 - (1 - CONFIDENCE) / (len(deltas) + use_mu)
    inside, outside = found.scores[found.coins], found.scores[~found.coins]

    def bound(delta: float, level: float) -> float:
        if found.kind == "one-run":
            return epsilon_from_one_run(found.scores, found.coins, delta, level)
        return epsilon_from_runs(inside, outside, delta, level)

    by_delta = tuple((delta, bound(delta, confidence), claim.curve(delta)) for delta in deltas)
    mu = mu_from_runs(inside, outside, confidence) if use_mu else None
    contradicted = any(low > claimed for _, low, claimed in by_delta)
    contradicted |= mu is not None and claim.mu is not None and mu > claim.mu
    return AuditFinding(bound(claim.delta, CONFIDENCE), by_delta, mu, contradicted)


def audit_result(
    name: str,
    finding: AuditFinding,
    claim: Claim,
    cost: Cost,
    *,
    assumptions: tuple[str, ...],
    settings: dict[str, Any],
    seed: int | None,
    checks: dict[str, str] | None = None,
    stopped: bool = False,
) -> AttackResult:
    """The finding as an :class:`AttackResult`: ``leaked`` means that the claim is contradicted."""
    claimed = claim.epsilon
    metrics = {"epsilon_lower_bound": finding.epsilon, "delta": claim.delta}
    if math.isfinite(claimed):
        metrics["epsilon_claimed"] = claimed
    if finding.mu is not None and claim.mu is not None:
        from ..privacy_curves import gaussian_epsilon

        metrics |= {
            "epsilon_lower_bound_if_gaussian": gaussian_epsilon(claim.delta, finding.mu),
            "mu_lower_bound": finding.mu,
            "mu_claimed": claim.mu,
        }
    return AttackResult(
        name=name,
        metrics=metrics,
        intervals={},  # the bound is itself the lower end of a one-sided interval
        **cost.figures(),
        assumptions=assumptions,
        settings={**settings, "claim": claim.words, "stopped_early": stopped, "confidence": CONFIDENCE},
        verdict=_verdict(finding, claimed),
        leaked=finding.contradicted,
        baselines={"epsilon_lower_bound": 0.0},
        seed=seed,
        checks=checks or {},
        curves={
            "lower bound": [(delta, low) for delta, low, _ in finding.by_delta],
            "claimed": [(delta, high) for delta, _, high in finding.by_delta if math.isfinite(high)],
        },
        curve_axes=("delta", "epsilon"),
    )


def _verdict(finding: AuditFinding, claimed: float) -> str:
    if finding.contradicted:
        return "The claimed privacy is false: the canaries were told apart better than the claim allows."
    if not math.isfinite(claimed):
        return "No useful privacy is claimed, so there is nothing to contradict."
    return "The claim was not contradicted; that is no proof of it."


def null_check(claim: Claim, count: int, *, kind: str, seed: int = 0) -> AuditFinding:
    """The same statistics on scores that are pure noise: the bounds must be 0."""
    rng = np.random.default_rng(seed)
    return judge(CanaryScores(rng.normal(size=count), rng.random(count) < 0.5, kind), claim)
