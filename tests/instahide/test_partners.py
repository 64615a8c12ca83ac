"""Partner draws: permutations without self-mixing or repeats; public draws over the whole pool."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instahide.errors import InvalidInputError
from instahide.partners import draw_private_partners, draw_public_sources
from instahide.randomness import Keystream, Randomness


def stream() -> Keystream:
    return Randomness().stream("partners")


@given(num_partners=st.integers(0, 15), extra=st.integers(0, 120))
@settings(max_examples=60, deadline=None)
def test_every_slot_permutes_the_data_and_no_row_repeats_an_image(num_partners: int, extra: int) -> None:
    num_images = num_partners + 1 + extra
    partners = draw_private_partners(stream(), num_images, num_partners)
    assert partners.shape == (num_images, num_partners)
    for slot in partners.T:
        assert sorted(slot) == list(range(num_images))
    rows = np.column_stack([np.arange(num_images), partners])
    assert all(len(set(row)) == num_partners + 1 for row in rows.tolist())


def test_as_many_images_as_slots_is_enough() -> None:
    partners = draw_private_partners(stream(), 4, 3)
    assert sorted(map(sorted, np.column_stack([range(4), partners]).tolist())) == [[0, 1, 2, 3]] * 4


def test_fewer_images_than_slots_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="4 different private images are mixed but there are only 3"):
        draw_private_partners(stream(), 3, 3)


@pytest.mark.statistical
@pytest.mark.parametrize("num_images", [10, 60])
def test_every_other_image_is_equally_likely_as_a_partner(num_images: int) -> None:
    """Both constructions are symmetric under renaming of images, so P(partner of 0 is j) = 1/(n-1).

    3,000 epochs of 3 slots: chi-squared over n-1 partners of image 0, n-2 degrees of freedom. The slots of
    one epoch exclude each other, which only lowers it. P(> 60 | 8) < 1e-9, P(> 140 | 58) < 1e-8.
    """
    source = stream()
    counts = np.zeros(num_images)
    for _ in range(3000):
        np.add.at(counts, draw_private_partners(source, num_images, 3)[0], 1)
    assert counts[0] == 0
    expected = 9000 / (num_images - 1)
    assert ((counts[1:] - expected) ** 2 / expected).sum() < {10: 60, 60: 140}[num_images]


@given(num_slots=st.integers(0, 15), extra=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_public_rows_hold_different_images_of_the_pool(num_slots: int, extra: int) -> None:
    rows = draw_public_sources(stream(), num_slots + extra, 20, num_slots)
    assert rows.shape == (20, num_slots)
    assert all(len(set(row)) == num_slots for row in rows.tolist())
    if num_slots:
        assert rows.min() >= 0
        assert rows.max() < num_slots + extra


def test_a_pool_as_large_as_a_row_is_used_whole() -> None:
    assert all(sorted(row) == [0, 1, 2] for row in draw_public_sources(stream(), 3, 50, 3).tolist())


def test_a_pool_smaller_than_a_row_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="2 usable images but a row needs 3"):
        draw_public_sources(stream(), 2, 5, 3)


@pytest.mark.statistical
def test_public_rows_are_uniform_over_ordered_pairs() -> None:
    """20 ordered pairs of 5 images, 40,000 rows: chi-squared with 19 degrees, P(> 75) = 1e-8."""
    rows = draw_public_sources(stream(), 5, 40_000, 2)
    counts = np.bincount(rows[:, 0] * 5 + rows[:, 1], minlength=25).reshape(5, 5)
    assert counts.diagonal().sum() == 0
    pairs = counts[~np.eye(5, dtype=bool)]
    assert ((pairs - 2000) ** 2 / 2000).sum() < 75
