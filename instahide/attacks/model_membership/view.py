"""What someone sees who may ask a trained model about images, and can train models of the same kind.

Axes: M candidates, S shadow models, Q queries of a candidate, Z population images, K classes.

All attacks here use one number of an answer, the log-odds of the right class y (Carlini et al.
2022, section VI-B)::

    φ = log( p_y / (1 − p_y) ) = z_y − log Σ_{k ≠ y} exp z_k                                   (1)

with z the scores before the softmax. Its law over shadow models is close to normal where p_y piles
up at 1. Computed from z it has no cancellation; from probabilities it cannot be better than their
last digit, so p is kept one rounding error of its type away from 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ModelView:
    """Answers of the target and of S shadow models about M candidates; not who was in the target.

    Args:
        target: (M, Q) log-odds of the right class, Q queries of each candidate; (M,) is read as Q = 1.
        shadows: (S, M, Q) the same numbers of the shadow models; (S, M) is read as Q = 1.
        shadow_members: (S, M) which candidates each shadow model was trained on. The attacker trained
            them, so this is known; a column without a true entry is an *offline* candidate.
        population_target, population_shadows: (Z,) and (S, Z), answers about images known not to be
            candidates, for RMIA; ``None`` takes the candidates themselves.

    Raises:
        InvalidInputError: shapes that do not fit, values that are not numbers, fewer than two shadow
            models without some candidate.
    """

    target: Floats
    shadows: Floats
    shadow_members: NDArray[np.bool_]
    population_target: Floats | None = None
    population_shadows: Floats | None = None

    def __post_init__(self) -> None:
        target, shadows = np.asarray(self.target, np.float64), np.asarray(self.shadows, np.float64)
        target = target[:, None] if target.ndim == 1 else target
        shadows = shadows[:, :, None] if shadows.ndim == 2 else shadows
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "shadows", shadows)
        object.__setattr__(self, "shadow_members", np.asarray(self.shadow_members, dtype=bool))
        _check(self)

    def __len__(self) -> int:
        return len(self.target)

    @property
    def num_shadows(self) -> int:
        """S."""
        return len(self.shadows)

    @property
    def is_online(self) -> bool:
        """Whether every candidate is in at least two shadow models (and out of two, which always holds)."""
        return bool((self.shadow_members.sum(axis=0) >= 2).all())

    def without(self, shadow: int) -> ModelView:
        """This shadow model in the place of the target: a rehearsal whose truth the attacker knows."""
        rest = np.arange(self.num_shadows) != shadow
        population = self.population_shadows
        return ModelView(
            self.shadows[shadow],
            self.shadows[rest],
            self.shadow_members[rest],
            None if population is None else population[shadow],
            None if population is None else population[rest],
        )


def right_class_log_odds(scores: NDArray[Any], labels: NDArray[np.integer]) -> Floats:
    """Equation (1) for scores (..., M, K) before the softmax and labels (M,): (..., M)."""
    scores = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.int64)
    if scores.ndim < 2 or scores.shape[-2:-1] != labels.shape:
        raise InvalidInputError(
            f"scores have shape {scores.shape} for {labels.shape} labels", hint="use (..., M, K) and (M,)"
        )
    K = scores.shape[-1]
    if K < 2 or labels.min(initial=0) < 0 or labels.max(initial=0) >= K:
        raise InvalidInputError(f"labels do not fit {K} classes", hint="number classes from 0")
    right = np.arange(K) == labels[:, None]
    own = np.take_along_axis(scores, np.broadcast_to(labels[:, None], (*scores.shape[:-1], 1)), -1)[..., 0]
    others = np.where(right, -np.inf, scores)
    largest = others.max(axis=-1)
    rest = np.log(np.exp(others - largest[..., None]).sum(axis=-1)) + largest
    return np.asarray(own - rest, dtype=np.float64)


def log_odds_of_probability(probability: NDArray[np.floating]) -> Floats:
    """log p/(1 − p), with p kept one rounding error of its own type away from 0 and 1."""
    margin = float(np.finfo(probability.dtype).eps)
    p = np.clip(np.asarray(probability, dtype=np.float64), margin, 1 - margin)
    return np.asarray(np.log(p) - np.log1p(-p), dtype=np.float64)


def probability_of_log_odds(log_odds: Floats) -> Floats:
    """p_y = 1 / (1 + exp(−φ)), without overflow."""
    from scipy.special import expit

    return np.asarray(expit(log_odds), dtype=np.float64)


def _check(view: ModelView) -> None:
    target, shadows, members = view.target, view.shadows, view.shadow_members
    if target.ndim != 2 or shadows.ndim != 3 or shadows.shape[1:] != target.shape:
        raise InvalidInputError(
            f"the target's answers are {target.shape}, the shadow models' {shadows.shape}",
            hint="give (M, Q) and (S, M, Q): the same candidates and queries for all models",
        )
    if members.shape != shadows.shape[:2]:
        raise InvalidInputError(
            f"shadow_members is {members.shape} for {shadows.shape[:2]} answers", hint="give one flag each"
        )
    if target.size == 0 or ((~members).sum(axis=0) < 2).any():
        raise InvalidInputError(
            "a candidate is outside fewer than two shadow models",
            hint="train each shadow model on a random half of the candidates, and at least four of them",
        )
    parts = {
        "the target": target,
        "the shadow models": shadows,
        "the target about the population": view.population_target,
        "the shadow models about the population": view.population_shadows,
    }
    for name, values in parts.items():
        if values is not None and not np.isfinite(values).all():
            raise InvalidInputError(f"answers of {name} are not all numbers", hint="look for NaN in them")
    about, by = view.population_target, view.population_shadows
    if (about is None) != (by is None) or (
        about is not None and by is not None and by.shape != (len(shadows), *about.shape)
    ):
        raise InvalidInputError("the population's answers do not fit", hint="give (Z,) and (S, Z)")
