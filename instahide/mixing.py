"""One encoding is a weighted sum, rounded, with its signs flipped: the arithmetic, step by step.

Axes: B records, k sources of a record, d = C·H·W values.

For a record with sources p_j (8-bit), weights w_j and total W = 255·Σw_j::

    a = Σ_j w_j·p_j             in float32, j ascending, no fused multiply-add
    s = clip(2a − W, −W, W)     the mixed image on the one symmetric range, times W
    m = s / W                                  not quantised
    m = sign(s)·floor(|s|·(L/W) + u) / L       quantised to L levels; u the keyed dither in (0, 1)
    e = m with the sign flipped where the mask bit is 1; −0.0 written as 0.0

The dither makes rounding unbiased, E[m] = s / W, and keeps anyone from solving for exact sums.

Private and public pixels share the range p → p/127.5 − 1; a different one for each (as published)
folds the two at different places and gives the sign away. On the coefficient grid the weights
are integers 1..64 and ``a`` is exact, so every path (C, torch, Triton) gives the same bits; off the
grid the order of operations above does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .sign_mask import unpack_sign_bits


def to_unit_range(images: Any) -> torch.Tensor:
    """Pixels 0..255 as float32 in [-1, 1]: x / 127.5 − 1, correctly rounded.

    Args:
        images: uint8 array or tensor of any shape.
    """
    tensor = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    return (2.0 * tensor.to(torch.float32) - 255.0) / 255.0


def mix_with_torch(
    sources: NDArray[np.uint8],
    weights: NDArray[np.float32],
    total: float,
    *,
    sign_bits: NDArray[np.uint8] | None,
    dither: NDArray[np.uint8] | None,
    levels: int | None,
) -> torch.Tensor:
    """(B, d) float32 encodings: the reference that every faster path equals bit for bit.

    Args:
        sources: (B, k, d) uint8.
        weights: (B, k) float32.
        total: W, 255 times the sum of a row's weights.
        sign_bits: (B, S) packed, or ``None`` for no sign mask.
        dither: (B, ≥ d) key-stream bytes, given with ``levels``; u = (byte + 1/2) / 256.
        levels: L, or ``None`` for no quantisation.
    """
    pixels, by_source = torch.from_numpy(sources), torch.from_numpy(weights)
    count, k, d = pixels.shape
    mixed = torch.zeros((count, d), dtype=torch.float32)
    for j in range(k):
        mixed += by_source[:, j, None] * pixels[:, j].to(torch.float32)
    scaled = (2.0 * mixed - total).clamp_(-total, total)
    if levels is None:
        mixed = scaled / total
    else:
        assert dither is not None
        ratio = float(np.float32(levels) / np.float32(total))
        offsets = (torch.from_numpy(dither[:, :d]).to(torch.float32) + 0.5) * (1.0 / 256.0)
        mixed = torch.copysign(torch.floor(scaled.abs() * ratio + offsets) / float(levels), scaled)
    if sign_bits is not None:
        flips = torch.from_numpy(unpack_sign_bits(sign_bits, d)).to(torch.int32) << 31
        mixed = (mixed.view(torch.int32) ^ flips).view(torch.float32)
    return mixed + 0.0  # −0.0 + 0.0 is 0.0
