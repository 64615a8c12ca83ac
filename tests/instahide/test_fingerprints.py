"""Equal pictures have equal fingerprints under one key, and none tells anything without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from instahide.fingerprints import fingerprint
from instahide.images import ImageSet

from .encoded_examples import private_images

KEY, OTHER_KEY = bytes(32), bytes(31) + b"\1"
IMAGES = private_images(6)


def test_layout_does_not_change_an_image_but_its_shape_does() -> None:
    pixels = IMAGES.images
    last = ImageSet(np.ascontiguousarray(np.moveaxis(pixels, 1, 3)))
    wide = ImageSet(pixels.reshape(6, 3, 4, 16))
    known = fingerprint(ImageSet(pixels), KEY)
    assert (known.digests == fingerprint(last, KEY).digests).all()
    assert (known.digests != fingerprint(wide, KEY).digests).any(axis=1).all()


def test_another_key_gives_other_fingerprints() -> None:
    one, other = fingerprint(IMAGES, KEY), fingerprint(IMAGES, OTHER_KEY)
    assert (one.digests != other.digests).any(axis=1).all()
    assert one.commitment != other.commitment


def test_one_pixel_makes_another_image_and_another_set() -> None:
    pixels = IMAGES.images.copy()
    pixels[3, 0, 0, 0] ^= 1
    one, other = fingerprint(IMAGES, KEY), fingerprint(ImageSet(pixels), KEY)
    assert (one.digests != other.digests).any(axis=1).tolist() == [False, False, False, True, False, False]
    assert one.commitment != other.commitment


def test_the_order_is_part_of_the_set_but_not_of_its_images() -> None:
    one, other = fingerprint(IMAGES, KEY), fingerprint(IMAGES.subset([5, 4, 3, 2, 1, 0]), KEY)
    assert one.commitment != other.commitment
    assert sorted(one) == sorted(other)


def test_labels_play_no_part() -> None:
    assert fingerprint(IMAGES, KEY).commitment == fingerprint(ImageSet(IMAGES.images), KEY).commitment


def test_a_mapped_file_has_the_fingerprints_of_its_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES.images)
    mapped = ImageSet(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert fingerprint(mapped, KEY).commitment == fingerprint(IMAGES, KEY).commitment


def test_an_empty_set_has_fingerprints_too() -> None:
    empty = fingerprint(IMAGES.subset([]), KEY)
    assert len(empty) == 0
    assert empty.first_copies(1).tolist() == []


@given(rows=st.lists(st.integers(0, 5), max_size=20), allowed=st.integers(1, 4))
@settings(deadline=None)
def test_the_first_copies_are_those_a_plain_count_finds(rows: list[int], allowed: int) -> None:
    kept = fingerprint(IMAGES.subset(rows), KEY).first_copies(allowed)
    assert kept.tolist() == [rows[:i].count(row) < allowed for i, row in enumerate(rows)]
