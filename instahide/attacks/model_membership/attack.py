"""Membership in a trained model, judged: LiRA, RMIA-style, and one loss threshold for all.

Axes: M candidates, S shadow models.

All scores are computed and shown; which of them the verdict is about is fixed before looking at the
truth, so that no figure is the best of several: the RMIA-style score, online where shadow models saw
the candidates and offline, with its slope tuned on shadow models, where they did not. It was the
stronger one on the development data (Fashion-MNIST, 32 shadow models: true positives at 1 % false ones
0.14 against 0.10 of LiRA), as Zarifzadeh et al. 2024 report for few shadow models. The baseline is one
threshold on the loss for everyone (Yeom et al. 2018), which takes no shadow model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError
from ..cost import Cost
from ..membership_outcome import ROC_AXES, MembershipOutcome, membership_outcome
from ..view import AttackResult
from .lira import MANY_SHADOWS, lira_scores
from .rmia import rmia_scores
from .view import Floats, ModelView

HEADLINE_ONLINE, HEADLINE_OFFLINE = "rmia_online", "rmia_offline"
BASELINE = "loss_threshold"


def all_scores(view: ModelView) -> dict[str, Floats]:
    """(M,) scores by the name of the attack; the online ones only where the view allows them."""
    scores = {BASELINE: view.target.mean(axis=1)}
    if view.is_online:
        scores |= {
            "lira_online": lira_scores(view),
            "lira_online_fixed_variance": lira_scores(view, fixed_variance=True),
            "lira_online_own_variance": lira_scores(view, fixed_variance=False),
            "rmia_online": rmia_scores(view),
        }
    scores |= {
        "lira_offline": lira_scores(view, online=False),
        "rmia_offline": rmia_scores(view, online=False),
    }
    return scores


def model_membership(
    view: ModelView,
    is_member: NDArray[np.bool_] | None = None,
    *,
    canaries: NDArray[np.bool_] | None = None,
    assumptions: tuple[str, ...] = (),
    settings: dict[str, Any] | None = None,
    check: bool = True,
    seed: int = 0,
) -> AttackResult:
    """Score all candidates and, with the truth, say how well members are told from others.

    Args:
        view: the answers the attacker has.
        is_member: (M,) the truth, used for the metrics only; ``None`` gives scores without metrics.
        canaries: (M,) candidates planted with a wrong label: the power check.
        assumptions, settings: how the models came about, for the record.
        check: run the null check: a target that saw none of the candidates.
        seed: of the null check's draws.

    Returns:
        ``scores`` of the headline attack; metrics ``auc``, ``tpr_at_1_percent_fpr`` and
        ``tpr_at_0.1_percent_fpr`` of it, with ``auc_<name>`` and ``tpr_at_1_percent_fpr_<name>`` of
        the others; baselines from the loss threshold; ROC curves of all for logarithmic axes.

    Raises:
        InvalidInputError: a truth of another length, or without members or without others.
    """
    with Cost() as cost:
        scores = all_scores(view)
    headline = HEADLINE_ONLINE if view.is_online else HEADLINE_OFFLINE
    common: dict[str, Any] = {
        "name": f"model membership ({headline.replace('_', ' ')})",
        **cost.figures(),
        "assumptions": (*_assumptions(view), *assumptions),
        "settings": {"num_candidates": len(view), "num_shadows": view.num_shadows, **(settings or {})},
        "scores": scores[headline],
        "seed": seed,
    }
    if is_member is None:
        verdict = "Scores only: without the truth about some candidates nothing can be said about a leak."
        return AttackResult(metrics={}, intervals={}, verdict=verdict, **common)
    truth = _checked_truth(view, is_member)
    ordinary = np.ones(len(view), dtype=bool) if canaries is None else ~np.asarray(canaries, dtype=bool)
    outcomes = {
        name: membership_outcome(values[truth & ordinary], values[~truth & ordinary])
        for name, values in scores.items()
    }
    metrics, intervals = _figures(outcomes, headline)
    checks, has_power = _checks(view, scores[headline], truth, headline, canaries, check, seed)
    leaked = outcomes[headline].leaked
    verdict = outcomes[headline].sentence("a training image", "in the trained model")
    if leaked is False and not has_power:
        leaked = None
        verdict = "Undecided: nothing was found, but planted canaries were not found either."
    return AttackResult(
        metrics=metrics,
        intervals=intervals,
        verdict=verdict,
        leaked=leaked,
        baselines=dict(outcomes[BASELINE].metrics),
        checks=checks,
        curves={name.replace("_", " "): outcome.curve for name, outcome in outcomes.items()},
        curve_axes=ROC_AXES,
        **common,
    )


def never_seen(view: ModelView, *, seed: int = 0) -> ModelView:
    """The view of a target that saw no candidate: its answers drawn from the shadow models' own law.

    For each candidate a normal draw with mean and variance of the shadow models without it. No attack
    may find a member here, however members and others differ as images.
    """
    outside = (~view.shadow_members)[:, :, None].astype(np.float64)
    counts = outside.sum(axis=0)
    mean = (outside * view.shadows).sum(axis=0) / counts
    variance = (outside * (view.shadows - mean) ** 2).sum(axis=0) / (counts - 1)
    drawn = mean + np.sqrt(variance) * np.random.default_rng(seed).normal(size=mean.shape)
    return ModelView(
        drawn, view.shadows, view.shadow_members, view.population_target, view.population_shadows
    )


def _figures(
    outcomes: dict[str, MembershipOutcome], headline: str
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    metrics, intervals = dict(outcomes[headline].metrics), dict(outcomes[headline].intervals)
    for name, outcome in outcomes.items():
        for metric in ("auc", "tpr_at_1_percent_fpr"):
            metrics[f"{metric}_{name}"] = outcome.metrics[metric]
            intervals[f"{metric}_{name}"] = outcome.intervals[metric]
    return metrics, intervals


def _checks(
    view: ModelView,
    scores: Floats,
    truth: NDArray[np.bool_],
    headline: str,
    canaries: NDArray[np.bool_] | None,
    check: bool,
    seed: int,
) -> tuple[dict[str, str], bool]:
    """Words, and whether the canaries were found (true where none were planted)."""
    checks, has_power = {}, True
    if canaries is not None and (canaries & truth).any() and (canaries & ~truth).any():
        planted = membership_outcome(scores[canaries & truth], scores[canaries & ~truth])
        low, high = planted.intervals["auc"]
        has_power = low > 0.5
        found = "found" if has_power else "NOT found"
        checks["power"] = (
            f"{int(canaries.sum())} canaries with a wrong label, {int((canaries & truth).sum())} of them "
            f"trained on: {found}, AUC {planted.metrics['auc']:.2f} ({low:.2f} to {high:.2f})"
        )
    if check:
        blind = all_scores(never_seen(view, seed=seed))[headline]
        null = membership_outcome(blind[truth], blind[~truth])
        low, high = null.intervals["auc"]
        checks["null"] = (
            f"a target that saw no candidate: {'ALARM' if null.leaked else 'nothing found'}, "
            f"AUC {null.metrics['auc']:.2f} ({low:.2f} to {high:.2f})"
        )
    return checks, has_power


def _assumptions(view: ModelView) -> tuple[str, ...]:
    kind = "on a random half of the candidates each" if view.is_online else "without the candidates"
    variance = "each candidate's own" if view.num_shadows >= MANY_SHADOWS else "one for all candidates"
    return (
        "the attacker may ask the model and sees the probability of the right class in full precision",
        "the attacker holds the exact candidate images and their labels",
        f"the attacker trained {view.num_shadows} shadow models like the target, {kind}",
        f"LiRA takes log-odds as normal; their variance is {variance}",
        "members and others are drawn from the same source",
    )


def _checked_truth(view: ModelView, is_member: NDArray[np.bool_]) -> NDArray[np.bool_]:
    truth = np.asarray(is_member, dtype=bool)
    if truth.shape != (len(view),):
        raise InvalidInputError(
            f"is_member has shape {truth.shape} for {len(view)} candidates", hint="give one flag each"
        )
    return truth
