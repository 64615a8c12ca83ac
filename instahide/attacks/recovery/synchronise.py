"""One sign for every row: which of z and −z each encoding holds, all rows together.

Axes: N encodings, n private images, D features.

Blind sign recovery leaves s_i = ±1 free in f_i = s_i·(whitened mixture of row i). Two things tell it:

* photographs and their mixtures are not symmetric about grey (log odds o_i that f_i is upright, from
  :func:`.image_prior.sign_odds`; on mixtures of six photographs 94 % of the rows come out right);
* rows that share private images agree: with W known, s maximises sᵀ[(F Fᵀ)∘(W S Wᵀ)]s without its
  diagonal, synchronisation over Z₂ (Singer 2011).

Both enter the mean-field equations s_i = tanh((o_i + 2⟨f_i, m_i⟩)/2), m_i what the other rows say of
row i's private part; iterated from s = tanh(o/2).
"""

from __future__ import annotations

import torch

STEPS = 15
TRUST = 0.3  # features are not quite independent, so their evidence counts less than it says


def synchronise(
    features: torch.Tensor, weights: torch.Tensor, solver: torch.Tensor, odds: torch.Tensor
) -> torch.Tensor:
    """(N,) expected signs in [-1, 1].

    Args:
        features: (N, D) whitened to unit variance about a row's private part, signs free per row.
        weights: (N, n) W.
        solver: (n, N) of the images from rows, equation (2) of :mod:`.regression`.
        odds: (N,) log odds of s_i = 1 from elsewhere; large where a sign is known.
    """
    own = (weights * solver.T).sum(1)
    size = features.square().sum(1)
    signs = torch.tanh(odds / 2)
    for _ in range(STEPS):
        agreement = (features * (weights @ (solver @ (signs[:, None] * features)))).sum(1)
        agreement = (agreement - own * size * signs) / (1 - own).clamp(min=0.05)
        signs = 0.3 * signs + 0.7 * torch.tanh((odds + 2 * TRUST * agreement) / 2)
    return signs


def row_agreement(
    features: torch.Tensor, weights: torch.Tensor, solver: torch.Tensor, signs: torch.Tensor
) -> torch.Tensor:
    """(N,) correlation of each signed row with what the other rows say of its private part."""
    signed = signs[:, None] * features
    others = weights @ (solver @ signed) - (weights * solver.T).sum(1)[:, None] * signed
    return torch.nn.functional.cosine_similarity(signed, others, dim=1)
