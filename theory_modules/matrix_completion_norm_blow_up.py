"""A problem on which no norm is minimised: every norm goes to infinity while the rank falls.

(N. Razin and N. Cohen, *Implicit regularization in deep learning may not be explainable by norms*, NeurIPS
2020.) Of a 2 × 2 matrix three entries are observed: W₁₂ = W₂₁ = 1, W₂₂ = 0. Whatever fits them has
determinant W₁₁·0 − 1 = −1. Gradient flow from balanced layers keeps the sign of the determinant, so from det
W(0) > 0 the loss ℓ = ½ Σ (residuals)² can only go to zero with |W₁₁| → ∞: with e = √(2ℓ) < 1,

    |W₁₁| ≥ (1 − e)²/e,      effective rank → 1.

From det W(0) < 0 nothing of the kind happens; W₁₁ stays bounded.

**The guard.** On paper the determinant never vanishes; in floating point its small singular value can fall
below rounding and flip sign, and the run then escapes to a bounded solution that flow would never reach. The
sign is therefore watched at every step, and a run that loses it stops there and says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import DOP853

from .deep_matrix_factorization_history import effective_rank
from .deep_matrix_factorization_layers import balanced_layers

FloatArray = NDArray[np.float64]

TARGET = np.array([[0.0, 1.0], [1.0, 0.0]])
MASK = np.array([[0.0, 1.0], [1.0, 1.0]])


@dataclass(frozen=True)
class NormBlowUp:
    """One row a loss level reached: ``losses``, ``corners`` |W₁₁|, ``bounds`` (1 − e)²/e,
    ``effective_ranks``.

    ``sign_lost_at`` is the loss at which the determinant's sign flipped in rounding, None if it never did.
    """

    depth: int
    losses: FloatArray
    corners: FloatArray
    bounds: FloatArray
    effective_ranks: FloatArray
    sign_lost_at: float | None


def norm_blow_up(
    depth: int = 3,
    *,
    scale: float = 0.1,
    positive_determinant: bool = True,
    levels: tuple[float, ...] = (1e-1, 1e-2, 1e-3),
    max_time: float = 1e6,
) -> NormBlowUp:
    """Follow the flow of ``depth`` balanced layers until ℓ reaches each level, or time or the sign runs out.

    The start is scale·[[1, 0.2], [0.2, ±0.5]], of the wanted sign.

    Raises:
        ValueError: depth below 2, or a scale that is not positive.
    """
    if depth < 2:
        raise ValueError(f"depth is {depth}; one layer has no determinant to keep, give at least 2")
    if not scale > 0:
        raise ValueError(f"scale is {scale!r}; give a positive number")
    sign = 1.0 if positive_determinant else -1.0
    start = torch.tensor([[1.0, 0.2], [0.2, sign * 0.5]], dtype=torch.float64) * scale
    layers = torch.stack(balanced_layers(start, depth)).numpy()
    solver = DOP853(
        lambda _, state: velocity(state.reshape(depth, 2, 2)).reshape(-1),
        0.0,
        layers.reshape(-1),
        max_time,
        rtol=1e-10,
        atol=1e-14,
    )
    rows: list[tuple[float, float, float, float]] = []
    lost: float | None = None
    while len(rows) < len(levels) and solver.status == "running":
        solver.step()
        layers = solver.y.reshape(depth, 2, 2)
        W = product(layers)
        loss = float(0.5 * np.square((W - TARGET) * MASK).sum())
        if np.prod([np.linalg.det(layer) for layer in layers]) * sign <= 0:
            lost = loss
            break
        if loss <= levels[len(rows)]:
            e = np.sqrt(2 * loss)
            values = np.linalg.svd(W, compute_uv=False)
            rows.append((loss, abs(float(W[0, 0])), float((1 - e) ** 2 / e), effective_rank(values)))
    columns = np.array(rows).reshape(-1, 4).T
    return NormBlowUp(depth, columns[0], columns[1], columns[2], columns[3], lost)


def product(layers: FloatArray) -> FloatArray:
    """W_N ··· W_1 of layers (N, 2, 2)."""
    W: FloatArray = layers[0]
    for layer in layers[1:]:
        W = np.asarray(layer @ W)
    return W


def velocity(layers: FloatArray) -> FloatArray:
    """−dℓ/dW_j, (N, 2, 2)."""
    below = [np.eye(2)]
    for layer in layers:
        below.append(layer @ below[-1])
    signal, out = (below.pop() - TARGET) * MASK, np.empty_like(layers)
    for j in range(len(layers) - 1, -1, -1):
        out[j] = -signal @ below[j].T
        signal = layers[j].T @ signal
    return out


if __name__ == "__main__":
    from .matrix_completion_experiments import main

    main(["--experiment", "norm-blow-up"])
