"""LiRA: the likelihood-ratio attack of Carlini et al., IEEE S&P 2022, arXiv 2112.03570.

Axes: M candidates, S shadow models, Q queries of a candidate.

Over models trained with candidate x the log-odds φ (see :mod:`.view`) are taken as normal with mean
μ_in(x), over models trained without it with mean μ_out(x). With x in some of the shadow models
(*online*, algorithm 1 of the paper), the score is the log likelihood ratio ::

    Λ(x) = Σ_q log N(φ_q; μ_in, σ²_in) − log N(φ_q; μ_out, σ²_out)                            (1)

and with shadow models that never saw x (*offline*) how surprising φ is without it ::

    Λ(x) = Σ_q (φ_q − μ_out) / (σ_out·√Q),     Pr[Z ≤ φ] = Φ(Λ)                                (2)

which orders candidates as the paper's one-sided test 1 − Pr[Z > φ] does, without its saturation at 1.

A variance per candidate needs many shadow models (the paper: 64 and more); with fewer, one variance
for all candidates is better: the mean squared deviation from each candidate's own mean, with the
divisor that makes it unbiased.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError
from .view import Floats, ModelView

MANY_SHADOWS = 64
"""From this many shadow models on, the variance of each candidate is estimated by itself."""
SD_FLOOR = 1e-3
"""Of log-odds: answers of shadow models that happen to agree must not divide by zero."""


def lira_scores(view: ModelView, *, online: bool = True, fixed_variance: bool | None = None) -> Floats:
    """(M,) scores by equation (1) or (2): higher, likelier a member.

    Args:
        online: equation (1), which needs every candidate in at least two shadow models.
        fixed_variance: one variance for all candidates; ``None``: below 64 shadow models.

    Raises:
        InvalidInputError: online, with a candidate in fewer than two shadow models.
    """
    if online and not view.is_online:
        raise InvalidInputError(
            "a candidate is in fewer than two shadow models", hint="use online=False, or train more"
        )
    fixed = view.num_shadows < MANY_SHADOWS if fixed_variance is None else fixed_variance
    mean_out, sd_out = _normal_law(view.shadows, ~view.shadow_members, fixed)
    z = (view.target - mean_out) / sd_out
    if not online:
        return np.asarray(z.sum(axis=1) / np.sqrt(z.shape[1]), dtype=np.float64)
    mean_in, sd_in = _normal_law(view.shadows, view.shadow_members, fixed)
    z_in = (view.target - mean_in) / sd_in
    ratio = (z**2 - z_in**2) / 2 + np.log(sd_out) - np.log(sd_in)
    return np.asarray(ratio.sum(axis=1), dtype=np.float64)


def _normal_law(answers: Floats, chosen: NDArray[np.bool_], fixed: bool) -> tuple[Floats, Floats]:
    """Mean and standard deviation (M, Q) of ``answers`` (S, M, Q) over the models ``chosen`` (S, M)."""
    weights = chosen[:, :, None].astype(np.float64)
    counts = weights.sum(axis=0)  # (M, 1), at least 2
    mean = (weights * answers).sum(axis=0) / counts
    squares = (weights * (answers - mean) ** 2).sum(axis=0)  # (M, Q)
    if fixed:
        variance = np.broadcast_to(squares.sum(axis=0) / (counts - 1).sum(), squares.shape)
    else:
        variance = squares / (counts - 1)
    return mean, np.sqrt(np.maximum(variance, SD_FLOOR**2))
