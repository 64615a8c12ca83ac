"""The demonstration's data: real, split without overlap, uneven, and the same at every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.demo.data import digits, dirichlet_split, natural_patches, prepare, save_part
from instahide.errors import InvalidInputError
from instahide.images import ImageSet

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def data():
    return prepare(None, NAMES, concentration=0.5, split_seed=7)


def keys(images: ImageSet) -> set[bytes]:
    return {image.tobytes() for image in images.images}


def test_every_digit_is_in_exactly_one_part(data) -> None:
    parts = [*(h.train for h in data.hospitals), *(h.test for h in data.hospitals), data.held_out]
    assert sum(len(part) for part in parts) == len(digits()) == 1797
    # scikit-learn's digits hold no picture twice, so parts that share none share no row
    assert len(set().union(*(keys(part) for part in parts))) == 1797


def test_the_hospitals_test_parts_make_up_the_test_images(data) -> None:
    together = np.concatenate([hospital.test.images for hospital in data.hospitals])
    assert np.array_equal(together, data.test.images)


def test_two_preparations_are_the_same(data) -> None:
    again = prepare(None, NAMES, concentration=0.5, split_seed=7)
    for one, other in zip(data.hospitals, again.hospitals, strict=True):
        assert np.array_equal(one.train.images, other.train.images)
    assert np.array_equal(data.public.images, again.public.images)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 100.0), st.integers(2, 5))
def test_a_dirichlet_split_is_a_partition(seed: int, concentration: float, parts: int) -> None:
    labels = np.arange(600) % 7
    split = dirichlet_split(labels, parts, concentration=concentration, rng=np.random.default_rng(seed))
    assert sorted(np.concatenate(split).tolist()) == list(range(600))
    assert min(len(part) for part in split) >= 40


def test_small_concentrations_are_uneven_and_large_ones_even() -> None:
    labels = np.arange(3000) % 10

    def spread(concentration: float) -> float:
        rng = np.random.default_rng(1)
        parts = dirichlet_split(labels, 3, concentration=concentration, rng=rng)
        return float(np.std([np.bincount(labels[part], minlength=10) for part in parts]))

    # Even: 100 of each class in each part. Dirichlet(a) on 3 parts has variance 2/(9(3a+1)) per
    # share, times 300² images: sd 10 at a = 66, sd 89 at a = 0.5.
    assert spread(1000.0) < 10 < 60 < spread(0.5)


def test_patches_are_natural_textures_of_the_shape_asked_for() -> None:
    patches = natural_patches((3, 16, 16), count=50, rng=np.random.default_rng(0))
    assert patches.image_shape == (3, 16, 16)
    assert patches.images.reshape(50, -1).std(axis=1).min() > 0
    assert len(keys(patches)) == 50


def test_a_part_is_read_back_as_it_was(data, tmp_path: Path) -> None:
    from instahide.readers import load_images

    path = save_part(data.hospitals[0], tmp_path)
    again = load_images(path, split="train")
    assert np.array_equal(again.images, data.hospitals[0].train.images)
    assert again.class_names == data.hospitals[0].train.class_names
    assert np.array_equal(load_images(path, split="test").images, data.hospitals[0].test.images)


def test_too_few_images_and_missing_labels_are_refused(tmp_path: Path) -> None:
    few = tmp_path / "few.npz"
    np.savez(few, x=digits().images[:100], y=digits().labels[:100])
    with pytest.raises(InvalidInputError, match="too few"):
        prepare(few, NAMES, concentration=0.5, split_seed=1)
    unlabelled = tmp_path / "pool.npz"
    np.savez(unlabelled, x=digits().images)
    with pytest.raises(InvalidInputError, match="labelled"):
        prepare(unlabelled, NAMES, concentration=0.5, split_seed=1)
