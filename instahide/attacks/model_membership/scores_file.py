"""Other people's numbers: answers of a target and its shadow models in one ``.npz``.

Axes: M candidates, S shadow models, Q queries of a candidate, K classes.

====================================  ==========================================================
array                                 what it is
====================================  ==========================================================
``target_logits``                     (M, K) or (M, Q, K), scores before the softmax, with ``labels`` (M,)
or ``target_probabilities``           (M,) or (M, Q), of the right class
``shadow_logits``                     (S, M, K) or (S, M, Q, K)
or ``shadow_probabilities``           (S, M) or (S, M, Q)
``shadow_members``                    (S, M) true where the candidate trained the shadow model
``is_member``                         (M,) the truth; without it there are scores and no metrics
``population_target_probabilities``   (Z,) and ``population_shadow_probabilities`` (S, Z), for RMIA; optional
====================================  ==========================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError
from .view import Floats, ModelView, log_odds_of_probability, right_class_log_odds

_HINT = (
    "the file needs target_logits or target_probabilities, shadow_logits or shadow_probabilities, "
    "shadow_members, and labels with logits"
)


def read_scores_file(path: Path | str) -> tuple[ModelView, NDArray[np.bool_] | None]:
    """The attacker's view and, if the file has it, the truth.

    Raises:
        InvalidInputError: not such a file, an array missing, or shapes that do not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError) as error:
        message = f"{Path(path).name} is not an .npz of arrays: {error}"
        raise InvalidInputError(message, hint=_HINT) from error
    if "shadow_members" not in arrays:
        raise InvalidInputError(f"{Path(path).name} has no shadow_members", hint=_HINT)
    population = arrays.get("population_target_probabilities")
    by_shadows = arrays.get("population_shadow_probabilities")
    view = ModelView(
        _log_odds(arrays, "target", 2),
        _log_odds(arrays, "shadow", 3),
        arrays["shadow_members"],
        None if population is None else _of_probabilities(population),
        None if by_shadows is None else _of_probabilities(by_shadows),
    )
    truth = arrays.get("is_member")
    return view, None if truth is None else np.asarray(truth, dtype=bool)


def write_scores_file(path: Path | str, view: ModelView, is_member: NDArray[np.bool_] | None) -> None:
    """What :func:`read_scores_file` reads, from log-odds of the right class alone (two-class logits)."""
    arrays: dict[str, Any] = {
        # With scores (φ, 0) for classes "right" and "wrong", equation (1) of view.py gives φ back exactly.
        "target_logits": np.stack([view.target, np.zeros_like(view.target)], axis=-1),
        "shadow_logits": np.stack([view.shadows, np.zeros_like(view.shadows)], axis=-1),
        "labels": np.zeros(len(view), dtype=np.int64),
        "shadow_members": view.shadow_members,
    }
    if is_member is not None:
        arrays["is_member"] = is_member
    np.savez(path, **arrays)


def _log_odds(arrays: dict[str, NDArray[Any]], who: str, rank: int) -> Floats:
    if f"{who}_probabilities" in arrays:
        return _of_probabilities(arrays[f"{who}_probabilities"])
    logits = arrays.get(f"{who}_logits")
    if logits is None or "labels" not in arrays:
        raise InvalidInputError(f"neither {who}_probabilities nor {who}_logits with labels", hint=_HINT)
    if logits.ndim == rank:  # one query: (..., M, K)
        return right_class_log_odds(logits, arrays["labels"])
    # (..., M, Q, K): queries before candidates, and back.
    return np.moveaxis(right_class_log_odds(np.moveaxis(logits, -2, 0), arrays["labels"]), 0, -1)


def _of_probabilities(values: NDArray[Any]) -> Floats:
    if not np.issubdtype(values.dtype, np.floating) or values.size == 0:
        raise InvalidInputError(f"probabilities are {values.dtype}", hint="give floating-point numbers")
    if not ((values >= 0) & (values <= 1)).all():
        raise InvalidInputError("probabilities are not in [0, 1]", hint="give softmax outputs")
    return log_odds_of_probability(values)
