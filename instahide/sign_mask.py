"""The sign mask σ ∈ {−1, +1}^d: one key-stream bit for each pixel and channel, used once.

Axes: B records, d = C·H·W values of a record.

A mask is never stored as ±1 floats: 32 of them weigh as much as the whole mask needs. Bits are
packed eight to a byte, bit i of a record in byte i // 8 at position i % 8, 1 for −1; the mixing
pass XORs them into the sign bit of its float32 result. Publishing σ∘x is exactly as good as
publishing |x|: the mask hides one bit a pixel and nothing else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .randomness import Keystream


def draw_sign_bits(stream: Keystream, count: int, num_values: int) -> NDArray[np.uint8]:
    """(B, S) packed bits; S bytes are whole cipher blocks, so records share none."""
    return stream.read_records(count, -(-num_values // 8))


def unpack_sign_bits(sign_bits: NDArray[np.uint8], num_values: int) -> NDArray[np.uint8]:
    """(B, d) of 0 and 1 from packed bits; 1 flips the sign."""
    return np.unpackbits(sign_bits, axis=1, count=num_values, bitorder="little")
