"""Mixing coefficients λ: the published folded-normal law, and the Dirichlet one.

Axes: N rows, k sources; sources 0..num_private-1 of a row are private, the own image is source 0.

folded-normal (the published code, ``train_inside.py`` / ``train_cross.py``): λ_j = |n_j| / Σ|n_i|,
n standard normal; a row is drawn again until max λ ≤ c1 (``max_coefficient``) and, with a public
pool, the private part Σ_{j < num_private} λ_j ≥ c2 (``min_private_sum``).
dirichlet: Dirichlet(1, ..., 1), uniform on the simplex, with the same bounds. (Not the law of the
paper's code; GradAttack uses a Dirichlet(3, 1, 1, 1).)
equal: 1/k each, nothing drawn.

On a grid g (hardened: 64) an accepted row is rounded to multiples of 1/g that sum to exactly 1, by
largest remainders; rows whose rounding breaks a bound or loses the own image are drawn again.
A grid leaves 64 possible values where float32 leaves millions, which is what makes decoding by
subset sums ambiguous, and it makes the mixing exact in integers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from .encoder_config import EncoderConfig
from .errors import RefusedError
from .randomness import Keystream

_MAX_ROUNDS = 1000
_MIN_DRAWS = 64
"""Few missing rows are drawn for many at a time; the first accepted ones are taken, in order."""


def draw_coefficients(
    stream: Keystream, count: int, config: EncoderConfig, *, num_private: int | None = None
) -> NDArray[np.float64]:
    """(count, k) coefficients: rows sum to 1, bounds held; k = 1 gives 1, to which no bound applies.

    Args:
        num_private: apply ``min_private_sum`` to the first this many; ``None``: apply no such bound.

    Raises:
        RefusedError: the bounds accept so few draws that they cannot be met in practice.
    """
    k = config.num_mixed
    if k == 1 or config.coefficient_law == "equal":
        return np.full((count, k), 1.0 / k)
    rows = np.empty((count, k))
    done = 0
    for _ in range(_MAX_ROUNDS):
        drawn = _draw_once(stream, max(count - done, _MIN_DRAWS), config)
        if config.coefficient_grid is not None:
            drawn = round_to_grid(drawn, config.coefficient_grid)
        accepted = drawn[_within_bounds(drawn, config, num_private)][: count - done]
        rows[done : done + len(accepted)] = accepted
        done += len(accepted)
        if done == count:
            return rows
    raise RefusedError(
        f"no coefficients within max_coefficient={config.max_coefficient} and min_private_sum="
        f"{config.min_private_sum} for {count - done} of {count} rows in {_MAX_ROUNDS} rounds of draws",
        hint="relax the bounds; the published values are 0.65 and 0.3",
    )


def round_to_grid(rows: NDArray[np.float64], grid: int) -> NDArray[np.float64]:
    """Rows summing to 1, rounded to multiples of 1/grid that still sum to 1 exactly (largest remainders)."""
    scaled = rows * grid
    floors = np.floor(scaled)
    short = np.rint(grid - floors.sum(axis=1)).astype(np.int64)
    # Rank of each remainder within its row, 0 the largest; the `short` largest are rounded up.
    ranks = np.argsort(np.argsort(floors - scaled, axis=1, kind="stable"), axis=1)
    return np.asarray((floors + (ranks < short[:, None])) / grid, dtype=np.float64)


def mix_labels(
    labels: NDArray[np.int64], coefficients: NDArray[np.float64], num_classes: int, config: EncoderConfig
) -> torch.Tensor:
    """(N, K) float32 soft labels: coefficients summed by the class of their private source.

    Args:
        labels: (N, num_private) classes of the private sources.
        coefficients: (N, num_private) their coefficients.

    Renormalised to sum to 1, and in ``hardened`` rounded to the grid, unless the mode is
    ``compat``: there rows sum to the private coefficients, which tells everyone that sum.
    """
    if config.renormalizes_labels:
        coefficients = coefficients / coefficients.sum(axis=1, keepdims=True)
    if config.coefficient_grid is not None:
        coefficients = round_to_grid(coefficients, config.coefficient_grid)
    rows = np.zeros((len(labels), num_classes))
    np.add.at(rows, (np.arange(len(labels))[:, None], labels), coefficients)
    return torch.from_numpy(rows.astype(np.float32))


def _draw_once(stream: Keystream, count: int, config: EncoderConfig) -> NDArray[np.float64]:
    uniforms = torch.from_numpy(stream.uniforms(count * config.num_mixed))
    # |N(0,1)| has distribution function erf(x / √2); a Dirichlet(1, ..., 1) is normalised exponentials.
    drawn = (
        math.sqrt(2) * torch.erfinv(uniforms)
        if config.coefficient_law == "folded-normal"
        else -uniforms.log()
    )
    rows = drawn.numpy().reshape(count, config.num_mixed)
    return np.asarray(rows / rows.sum(axis=1, keepdims=True), dtype=np.float64)


def _within_bounds(
    rows: NDArray[np.float64], config: EncoderConfig, num_private: int | None
) -> NDArray[np.bool_]:
    accepted = (rows.max(axis=1) <= config.max_coefficient) & (rows[:, 0] > 0)
    if num_private is not None:
        accepted &= rows[:, :num_private].sum(axis=1) >= config.min_private_sum
    return np.asarray(accepted)
