"""A low-rank matrix from its large entries: why pruning protects no dense first layer.

Axes: H rows, d columns, n the rank.

A pruned gradient keeps the largest entries of M = Δᵀ·[X | 1], whose rank is the number of images n, and
writes zeros elsewhere. Alternating least squares on the kept entries (Jain, Netrapalli & Sanghavi 2013)
finds the two factors, one ridge solve of n unknowns for each row and column:

    minimise Σ_kept (M_rj − l_r·r_j)²        l_r, r_j of n values

There are n·(H + d − n) unknowns; at 90 % pruning of a 256 × 784 layer 20,000 entries remain, enough for n
up to a dozen; at 99 % for one image. Entries below the threshold are missing *because* they are small; a
row or column without any kept entry cannot be filled and is set to zero.
"""

from __future__ import annotations

import torch

ENOUGH_ENTRIES = 1.5  # kept entries for each unknown
FITTING = 1e-3  # relative squared residual on the kept entries: noise has n/min(H, d) less at best
RIDGE = 1e-9
RESTARTS = 3


def spare_entries(matrix: torch.Tensor, rank: int) -> float:
    """Kept entries for each unknown, counting rows and columns with any."""
    kept = matrix != 0
    rows, columns = int(kept.any(1).sum()), int(kept.any(0).sum())
    return float(kept.sum()) / max(1, rank * (rows + columns - rank))


def complete_low_rank(matrix: torch.Tensor, rank: int, *, rounds: int = 150) -> tuple[torch.Tensor, float]:
    """((H, d) of that rank, relative squared residual on the entries that are not zero)."""
    kept = (matrix != 0).double()
    total = float(matrix.square().sum())
    if total == 0.0:
        return matrix, 1.0
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    factor = left[:, :rank] * values[:rank].sqrt()
    other = right[:rank].T * values[:rank].sqrt()
    before = 1.0
    for done in range(rounds):
        other = _solve(matrix.T, kept.T, factor)
        factor = _solve(matrix, kept, other)
        residual = float((kept * (matrix - factor @ other.T)).square().sum()) / total
        if residual < 1e-14 or (done % 10 == 9 and before - residual < 1e-3 * residual):
            break
        before = residual if done % 10 == 9 else before
    return factor @ other.T, residual


def _solve(matrix: torch.Tensor, kept: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """(rows, n): each row's least-squares combination of ``factor`` (columns, n) on its kept entries."""
    n = factor.shape[1]
    moments = (kept @ (factor[:, :, None] * factor[:, None, :]).flatten(1)).reshape(-1, n, n)
    size = moments.diagonal(dim1=1, dim2=2).sum(1) / n
    # A row without kept entries becomes zero; its own size would give no ridge at all.
    floor = size.mean().clamp_min(1e-300)
    ridge = RIDGE * torch.maximum(size, floor)[:, None, None] * torch.eye(n, dtype=matrix.dtype)
    solved: torch.Tensor = torch.linalg.solve(moments + ridge, (matrix * kept) @ factor)
    return solved
