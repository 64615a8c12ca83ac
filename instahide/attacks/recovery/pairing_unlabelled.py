"""Candidates where labels tell nothing: the likeliest images of each encoding taken alone.

Axes: N encodings, n private images, M candidates of a slot, G hypotheses about coefficients, Q coefficients.

Without labels any two of n images may be inside an encoding, with any coefficients of the law: n²·G states
are too many. The evidence for one image, the other counted as noise,

    log E_λ[ p(y | λ, u) / p(y) ] = log mean_λ cosh(λ⟨y, u⟩)·exp(−λ²·E|u|²/2),                        (1)

in the metric 1/σ², ranks the n images of an encoding; the M best are the candidates of both slots of
:mod:`.pairing_model`, and are chosen anew for every step.
"""

from __future__ import annotations

import torch

from .pairing_features import Features
from .pairing_model import Candidates, Vectors, log_cosh

NUM_CANDIDATES = 8


def likely_pairs(
    features: Features, coefficients: torch.Tensor, pairs: torch.Tensor, vectors: Vectors
) -> Candidates:
    """The ``NUM_CANDIDATES`` likeliest images of every encoding as candidates of both slots.

    Args:
        coefficients: (Q,) values of one private coefficient, of equal probability.
        pairs: (G, 2) values of both, of equal probability.
    """
    own = (vectors.mean.square() / features.noise_variance).sum(1) + vectors.covariance.diagonal()
    scores = single_slot(features, coefficients, vectors.mean, own, 1.0)[0] + vectors.prices
    best = scores.topk(min(NUM_CANDIDATES, scores.shape[1]), dim=1).indices
    rows = torch.arange(len(scores))
    return Candidates(rows, best, best, pairs.expand(len(rows), -1, -1))


def single_slot(
    features: Features, coefficients: torch.Tensor, vectors: torch.Tensor, own: torch.Tensor, power: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(N, n) equation (1), E[s·λ] and E[λ²] given the image.

    Args:
        vectors: (n, r). own: (n,) E|u|².
    """
    along = (features.values / features.noise_variance) @ vectors.T
    logs, signs = [], []
    for value in coefficients.tolist():
        t = power * value * along
        logs.append((t if features.signs_known else log_cosh(t)) - power * value**2 * own / 2)
        signs.append(torch.ones_like(t) if features.signs_known else torch.tanh(t))
    stacked = torch.stack(logs)
    share = torch.softmax(stacked, dim=0)
    column = coefficients[:, None, None]
    return (
        stacked.logsumexp(0) - torch.log(torch.tensor(float(len(coefficients)))),
        (share * torch.stack(signs) * column).sum(0),
        (share * column.square()).sum(0),
    )
