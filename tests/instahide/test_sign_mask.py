"""Sign masks: one fair bit a pixel and channel, packed, in a stated order."""

from __future__ import annotations

import numpy as np
import pytest

from instahide.randomness import Keystream, Randomness
from instahide.sign_mask import draw_sign_bits, unpack_sign_bits


def test_bits_are_taken_lowest_first() -> None:
    packed = np.array([[0b0000_0101, 0b1000_0000]], dtype=np.uint8)
    assert unpack_sign_bits(packed, 16).tolist() == [[1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]]
    assert unpack_sign_bits(packed, 3).tolist() == [[1, 0, 1]]


def test_a_mask_takes_one_bit_a_value_and_whole_blocks() -> None:
    assert draw_sign_bits(Keystream(bytes(32)), 7, 3072).shape == (7, 384)
    assert draw_sign_bits(Keystream(bytes(32)), 7, 784).shape == (7, 128)


@pytest.mark.statistical
def test_masks_are_fair_and_independent_between_records_and_neighbours() -> None:
    """n = 200·3072 bits: shares 1/2 ± 0.00064; six sigma 0.0039 (2e-9), for ones and for equal pairs."""
    bits = unpack_sign_bits(draw_sign_bits(Randomness().stream("signs"), 200, 3072), 3072)
    assert abs(bits.mean() - 0.5) < 0.0039
    assert abs((bits[1:] == bits[:-1]).mean() - 0.5) < 0.0039
    assert abs((bits[:, 1:] == bits[:, :-1]).mean() - 0.5) < 0.0039
    channels = bits.reshape(200, 3, 1024)
    assert abs((channels[:, 0] == channels[:, 1]).mean() - 0.5) < 0.0048  # a third of the bits
