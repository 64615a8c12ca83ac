"""Who has which images: sizes, classes, and no image in a hospital twice or in the test part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from federation.simulation.population import Heterogeneity, Population, spread
from instahide.errors import InvalidInputError
from instahide.images import ImageSet


def pool(count: int = 600, classes: int = 5) -> ImageSet:
    """Pictures that all differ: each is its own number in base 256."""
    numbers = np.arange(count)
    pixels = np.zeros((count, 4, 4), np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = numbers // 256, numbers % 256
    return ImageSet(pixels, numbers % classes)


def labels_of(population: Population, number: int) -> np.ndarray:
    assert population.images.labels is not None
    return population.images.labels[population.training[number - 1]]


def test_the_spread_repeats_and_changes_with_the_seed() -> None:
    law = Heterogeneity(num_hospitals=7, images_per_hospital=20)
    first, again = spread(pool(), law), spread(pool(), law)
    other = spread(pool(), Heterogeneity(num_hospitals=7, images_per_hospital=20, seed=1))
    assert all(np.array_equal(a, b) for a, b in zip(first.training, again.training, strict=True))
    assert not np.array_equal(first.test, other.test)


def test_no_hospital_has_an_image_twice_or_one_of_the_test_part() -> None:
    """30 hospitals of 100 images from 480: every image is dealt about six times."""
    population = spread(pool(), Heterogeneity(num_hospitals=30, images_per_hospital=100, alpha=0.5))
    for rows in population.training:
        assert len(np.unique(rows)) == len(rows)
        assert not set(rows) & set(population.test)
    counted = np.bincount(np.concatenate(population.training), minlength=600)
    facts = population.facts()
    assert facts["images"] == counted.sum()
    assert facts["distinct-images"] == (counted > 0).sum()
    assert facts["most-holders"] == counted.max()


def test_images_are_shared_only_when_the_pool_is_used_up() -> None:
    """Without a draw of classes, 4 x 100 of 480 are in everybody's one deal but for uneven class counts."""
    population = spread(pool(), Heterogeneity(num_hospitals=4, images_per_hospital=50, alpha=0.0))
    assert population.facts()["most-holders"] == 1


def test_a_small_alpha_gives_few_classes_and_a_large_one_all() -> None:
    few, even = (
        spread(pool(), Heterogeneity(num_hospitals=40, images_per_hospital=30, alpha=alpha)).facts()
        for alpha in (0.02, 100.0)
    )
    assert few["mean-classes"] < 2.5
    assert even["mean-classes"] > 4.9


def test_sizes_keep_their_mean_under_skew() -> None:
    """Log-normal, mean 30: the mean of 2,000 has the deviation 30 sqrt(e - 1) / sqrt(2000)."""
    law = Heterogeneity(num_hospitals=2000, images_per_hospital=30, alpha=0.0, size_skew=1.0)
    sizes = np.array([len(rows) for rows in spread(pool(6000), law).training])
    assert abs(sizes.mean() - 30) < 6 * 30 * np.sqrt((np.e - 1) / 2000)
    assert sizes.min() >= 2
    assert abs(np.log(sizes[sizes > 8]).std() - 1.0) < 0.5


def test_copies_in_the_pool_are_left_out() -> None:
    images = pool(100)
    doubled = ImageSet(np.concatenate([images.images[:, 0]] * 2), np.concatenate([images.labels] * 2))
    assert len(spread(doubled, Heterogeneity(num_hospitals=2, images_per_hospital=10)).images) == 100


def test_what_is_saved_is_loaded_with_the_images_mapped(tmp_path: Path) -> None:
    population = spread(pool(), Heterogeneity(num_hospitals=5, images_per_hospital=20))
    population.save(tmp_path)
    loaded = Population.load(tmp_path)
    for number in population.names:
        ours, theirs = population.data(number), loaded.data(number)
        assert np.array_equal(ours.training.images, theirs.training.images)
        assert np.array_equal(ours.test.images, theirs.test.images)
        assert ours.class_names == theirs.class_names


@pytest.mark.parametrize("settings", [{"num_hospitals": 1}, {"alpha": -1.0}, {"size_skew": 9.0}])
def test_values_without_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match="--"):
        Heterogeneity(**settings)  # type: ignore[arg-type]


def test_images_without_labels_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="labels"):
        spread(ImageSet(pool().images[:, 0], None), Heterogeneity())
