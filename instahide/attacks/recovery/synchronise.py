"""One sign for every row: which of z and −z each encoding holds, all rows together.

Axes: N encodings, n private images, D features.

Blind sign recovery leaves s_i = ±1 free in f_i = s_i·(whitened mixture of row i). Rows that share private
images correlate, so with W known the signs maximise the quadratic form sᵀ[(F Fᵀ)∘(W S Wᵀ)]s without its
diagonal: synchronisation over Z₂ (Singer 2011). Power iteration that turns slowly into a mean-field
iteration (tanh), from several random starts; the best objective wins. Rows that no chain of shared images
connects keep a free sign each; :func:`connected_rows` says which.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

STARTS = 4
LINEAR_STEPS = 6
STEPS = 40


def synchronise(
    features: torch.Tensor, weights: torch.Tensor, solver: torch.Tensor, start: torch.Tensor, *, seed: int
) -> torch.Tensor:
    """(N,) soft signs in [-1, 1].

    Args:
        features: (N, D) whitened, signs free per row.
        weights: (N, n) W.
        solver: (n, N) of the images from rows, equation (2) of :mod:`.regression`.
        start: (N,) what is known of the signs by other means, 0 where nothing; all 0: random starts.
    """
    own = (weights * solver.T).sum(1) * features.square().sum(1)
    generator = torch.Generator().manual_seed(seed)
    known = bool((start != 0).any())
    best, best_value = start, -float("inf")
    for _ in range(1 if known else STARTS):
        signs = start if known else torch.randn(len(features), generator=generator)
        for step in range(STEPS):
            field = (features * (weights @ (solver @ (signs[:, None] * features)))).sum(1) - own * signs
            scale = field.abs().mean().clamp(min=1e-12)
            signs = (
                field / scale if step < LINEAR_STEPS and not known else torch.tanh(0.3 * step * field / scale)
            )
            signs = torch.where(start != 0, start, signs) if known else signs
        value = float((field * signs).sum())
        if value > best_value:
            best, best_value = signs, value
    return best.clamp(-1, 1)


def connected_rows(private_rows: NDArray[np.int64], num_images: int) -> NDArray[np.int64]:
    """(N,) component of each row in the graph of private images that rows join."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    heads = np.repeat(private_rows[:, 0], private_rows.shape[1])
    edges = (np.ones(len(heads)), (heads, private_rows.ravel()))
    _, component = connected_components(coo_array(edges, shape=(num_images, num_images)), directed=False)
    return np.asarray(component[private_rows[:, 0]], dtype=np.int64)
