"""RMIA-style scores: candidate against population, Zarifzadeh, Liu, Shokri, ICML 2024, arXiv 2312.03262.

Axes: M candidates, S shadow models, Z population images, Q queries of a candidate.

How much likelier the target finds x than models in general do, against the same for images z of the
population::

    ratio(x) = Pr(x | target) / Pr(x),    score(x) = share of z with ratio(x) / ratio(z) ≥ γ    (1)

Pr(x | model) is the probability of the right class. Pr(x) is its mean over models with x and models
without x, each half the weight; offline, where no shadow model saw x, its mean over models with x is
guessed from the mean without, P_out, by a line through (1, 1)::

    Pr(x) = ½·( P_out + (a·P_out + 1 − a) ) = ½·( (1 + a)·P_out + 1 − a )                       (2)

The share of (1) rises with ratio(x) and depends on x through nothing else; so ratio(x) decides the
order, and γ only how far shares tell candidates apart. Ties of the share are broken by ratio(x).
``a`` is chosen on shadow models in the target's place, whose members the attacker knows.
"""

from __future__ import annotations

import numpy as np

from ...errors import InvalidInputError
from ..metrics import roc_auc
from .view import Floats, ModelView, probability_of_log_odds

OFFLINE_SLOPES = tuple(step / 10 for step in range(11))
NUM_REHEARSALS = 4
_TINY = 1e-30


def rmia_scores(
    view: ModelView, *, online: bool = True, gamma: float = 1.0, offline_slope: float | None = None
) -> Floats:
    """(M,) scores in [0, 1 + 1/Z] by equation (1): higher, likelier a member.

    Args:
        online: Pr(x) from shadow models with and without x; else by equation (2).
        gamma: γ > 0.
        offline_slope: a of equation (2); ``None``: the best in rehearsals.

    Raises:
        InvalidInputError: γ not above 0; online, with a candidate in fewer than two shadow models.
    """
    if not gamma > 0:
        raise InvalidInputError(f"gamma is {gamma}", hint="use a number above 0; 1 or 2 is customary")
    if online and not view.is_online:
        raise InvalidInputError(
            "a candidate is in fewer than two shadow models", hint="use online=False, or train more"
        )
    slope = tuned_offline_slope(view) if not online and offline_slope is None else offline_slope
    ratio = _candidate_ratio(view, slope if not online else None)
    if view.population_target is None or view.population_shadows is None:
        population = np.sort(ratio)
    else:
        general = probability_of_log_odds(view.population_shadows).mean(axis=0)
        population = np.sort(probability_of_log_odds(view.population_target) / np.maximum(general, _TINY))
    Z = len(population)
    share = np.searchsorted(population, ratio / gamma, side="right") / Z
    return np.asarray(share + ratio / (1 + ratio) / Z, dtype=np.float64)


def tuned_offline_slope(view: ModelView) -> float:
    """The a of equation (2) with the largest mean AUC over rehearsals; 0.3 where there can be none."""
    rehearsals = []
    for shadow in range(min(NUM_REHEARSALS, view.num_shadows)):
        members = view.shadow_members[shadow]
        enough = (~np.delete(view.shadow_members, shadow, axis=0)).sum(axis=0).min() >= 2
        if enough and 0 < members.sum() < len(members):
            rehearsals.append((view.without(shadow), members))
    if not rehearsals:
        return 0.3

    def mean_auc(slope: float) -> float:
        ratios = [(_candidate_ratio(rehearsal, slope), members) for rehearsal, members in rehearsals]
        return float(np.mean([roc_auc(ratio[members], ratio[~members]) for ratio, members in ratios]))

    return max(OFFLINE_SLOPES, key=mean_auc)


def _candidate_ratio(view: ModelView, offline_slope: float | None) -> Floats:
    """(M,) Pr(x | target) / Pr(x), averaged over queries in the logarithm; ``None``: online."""
    shadows, members = probability_of_log_odds(view.shadows), view.shadow_members[:, :, None]
    outside = (shadows * ~members).sum(axis=0) / (~members).sum(axis=0)
    if offline_slope is None:
        inside = (shadows * members).sum(axis=0) / members.sum(axis=0)
    else:
        inside = offline_slope * outside + 1 - offline_slope
    general = np.maximum((outside + inside) / 2, _TINY)
    target = np.maximum(probability_of_log_odds(view.target), _TINY)
    return np.asarray(np.exp((np.log(target) - np.log(general)).mean(axis=1)), dtype=np.float64)
