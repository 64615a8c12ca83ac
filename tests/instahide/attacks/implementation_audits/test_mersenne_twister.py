from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from instahide.attacks.implementation_audits.mersenne_twister import (
    DEGREE,
    characteristic_polynomial,
    continue_sequence,
    first_outputs,
    first_outputs_of_python,
    recurrence_taps,
    state_from_bits,
    temper,
    tempering_masks,
)

SEEDS = np.array([0, 1, 42, 19_650_218, 2**31, 2**32 - 1], dtype=np.uint32)


def raw(seed: int, count: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 2**32, count, dtype=np.uint32)


def test_first_outputs_are_those_of_numpy_for_every_seed() -> None:
    ours = first_outputs(SEEDS, 227)
    for column, seed in zip(ours.T, SEEDS, strict=True):
        np.testing.assert_array_equal(column, raw(int(seed), 227))


def test_first_outputs_are_those_of_torch() -> None:
    for seed in (7, 2**32 - 2):
        bits = torch.randint(2, (200,), generator=torch.Generator().manual_seed(seed)).numpy()
        ours = first_outputs(np.array([seed], dtype=np.uint32), 200)[:, 0]
        np.testing.assert_array_equal(bits, ours & 1)


def test_first_outputs_are_those_of_pythons_random() -> None:
    ours = first_outputs_of_python(SEEDS, 100)
    for column, seed in zip(ours.T, SEEDS, strict=True):
        draw = random.Random(int(seed))
        assert column.tolist() == [draw.getrandbits(32) for _ in range(100)]


@pytest.mark.parametrize("seed", [0, 5, 2**31])
def test_torch_forgets_all_but_32_bits_of_a_seed(seed: int) -> None:
    draws = [
        torch.randint(2**62, (50,), generator=torch.Generator().manual_seed(s)) for s in (seed, seed + 2**32)
    ]
    assert torch.equal(*draws)


def test_tempering_is_the_exclusive_or_that_its_masks_say() -> None:
    words = raw(3, 100)
    bits = words[:, None] >> np.arange(32, dtype=np.uint32) & 1
    for out, mask in enumerate(tempering_masks()):
        chosen = [b for b in range(32) if mask >> b & 1]
        expected = np.bitwise_xor.reduce(bits[:, chosen], axis=1)
        np.testing.assert_array_equal(temper(words) >> np.uint32(out) & 1, expected)


def test_the_characteristic_polynomial_has_the_published_degree_and_number_of_terms() -> None:
    phi = characteristic_polynomial()
    # Matsumoto and Nishimura 1998, table II: MT19937's polynomial has 135 terms.
    assert phi.bit_length() - 1 == DEGREE == 19_937
    assert phi.bit_count() == 135


@pytest.mark.parametrize("bit", [0, 13, 23, 31])
def test_every_output_bit_obeys_the_recurrence(bit: int) -> None:
    bits = raw(11, DEGREE + 3000) >> np.uint32(bit) & 1
    sums = np.zeros(3000, dtype=np.uint32)
    for tap in [*recurrence_taps(), DEGREE]:
        sums ^= bits[tap : tap + 3000]
    assert not sums.any()


def test_a_stream_is_continued_in_both_directions() -> None:
    bits = (raw(12, DEGREE + 5000) & 1).astype(np.uint8)
    middle = bits[2000 : 2000 + DEGREE]
    np.testing.assert_array_equal(continue_sequence(middle, 3000), bits[-3000:])
    np.testing.assert_array_equal(continue_sequence(middle, 2000, backwards=True), bits[:2000])


@pytest.mark.parametrize("bit", [0, 23, 31])
def test_one_bit_of_the_outputs_gives_the_whole_state(bit: int) -> None:
    outputs = raw(13, 3 * DEGREE)
    state = state_from_bits((outputs >> np.uint32(bit) & 1).astype(np.uint8), bit)
    np.testing.assert_array_equal(temper(state), outputs[:624])
