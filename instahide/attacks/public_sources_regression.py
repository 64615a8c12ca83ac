"""Small parts of the search for sources: least squares with λ ≥ 0, and what is left unexplained.

Axes: n encodings, m candidates, G frequency bands, d = C·H·W values.
"""

from __future__ import annotations

import torch

RIDGE = 1e-6
RING_EDGES = (1.5, 3.0, 5.0, 7.0, 9.5, 12.0, 15.0, 18.0, 21.0, 24.0, 28.0, 32.5)  # of 32 frequencies


def remaining_spread(weight: torch.Tensor, count: torch.Tensor | float) -> torch.Tensor:
    """About E Σ λ_j² of ``count`` folded-normal coefficients that sum to ``weight``.

    For |n_j|/Σ|n_i| of k standard normals E Σ λ² is 0.64 (k = 2), 0.36 (4) and 0.25 (6); the formula
    gives 0.62, 0.35 and 0.24.
    """
    return weight.square() * 1.6 / (count + 0.6)


def nonnegative_least_squares(gram: torch.Tensor, moments: torch.Tensor, sweeps: int = 80) -> torch.Tensor:
    """(n, m) minimisers x ≥ 0 of ½ xᵀGx − bᵀx by coordinate descent; an all-zero row of G gives 0.

    Args:
        gram: (n, m, m) G.
        moments: (n, m) b.
    """
    x = torch.zeros_like(moments)
    diagonal = gram.diagonal(dim1=1, dim2=2).clamp(min=1e-9)
    for _ in range(sweeps):
        for j in range(x.shape[1]):
            gradient = moments[:, j] - (gram[:, j] * x).sum(1)
            x[:, j] = (x[:, j] + gradient / diagonal[:, j]).clamp(min=0)
    return x


def standard_errors(gram: torch.Tensor, *, absent: torch.Tensor) -> torch.Tensor:
    """(n, m) square roots of the diagonal of G⁻¹, in double precision.

    The pool may hold an image twice, and an exact fit makes weights of a million; a ridge of a millionth
    of the diagonal keeps G invertible, so that twins get a large error instead of a failure.

    Args:
        gram: (n, m, m) G of unit-variance noise.
        absent: (n, m) candidates that are no candidates; their rows of G are zero.
    """
    system = gram.double()
    diagonal = system.diagonal(dim1=1, dim2=2)
    largest = diagonal.amax(1, keepdim=True).clamp(min=1e-30)
    ridge = RIDGE * diagonal + torch.where(absent | (diagonal <= RIDGE * largest), largest, 0.0)
    inverse = torch.linalg.inv(system + torch.diag_embed(ridge))
    errors: torch.Tensor = inverse.diagonal(dim1=1, dim2=2).clamp(min=1e-30).sqrt().float()
    return errors


def frequency_bands(C: int, H: int, W: int) -> torch.Tensor:
    """(d, G) 0/1: which band, a ring of frequencies of one colour axis, a component belongs to."""
    rows, columns = torch.arange(H)[:, None] / H, torch.arange(W)[None, :] / W
    ring = torch.bucketize((rows.square() + columns.square()).sqrt() * 32, torch.tensor(RING_EDGES))
    band = (torch.arange(C)[:, None, None] * (len(RING_EDGES) + 1) + ring).flatten()
    members = torch.nn.functional.one_hot(band).float()
    return members[:, members.sum(0) > 0]
