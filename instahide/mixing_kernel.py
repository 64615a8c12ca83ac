"""The mixing pass: gather, weigh, round and flip each record in one go.

Axes: B records, k sources of a record, d = C·H·W values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .mixing import mix_with_torch


@dataclass(frozen=True, repr=False)
class Sources:
    """Some columns of a batch's sources: rows ``indices`` (B, s) of ``images`` (N, C, H, W) uint8."""

    images: NDArray[np.uint8]
    indices: NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class Recipe:
    """Everything drawn for a batch. Secret; lives for one mixing pass.

    ``weights`` (B, k) float32 and ``total`` = 255 × their sum in a row; ``sign_bits`` (B, S) packed or
    ``None``; ``dither`` (B, ≥ d) bytes, with ``levels`` L, or ``None`` for no quantisation.
    """

    sources: Sequence[Sources]
    weights: NDArray[np.float32]
    total: float
    sign_bits: NDArray[np.uint8] | None
    dither: NDArray[np.uint8] | None
    levels: int | None


def active_path() -> str:
    """Which code mixes on the CPU: ``"c"`` or ``"torch"``; both give the same numbers."""
    return "torch"


def mix_records(recipe: Recipe, out: torch.Tensor) -> None:
    """Write the B encodings of ``recipe`` to ``out``, float32 (B, d) contiguous on the CPU."""
    gathered = [part.images[part.indices].reshape(*part.indices.shape, -1) for part in recipe.sources]
    out[:] = mix_with_torch(
        np.concatenate(gathered, axis=1),
        recipe.weights,
        recipe.total,
        sign_bits=recipe.sign_bits,
        dither=recipe.dither,
        levels=recipe.levels,
    )
