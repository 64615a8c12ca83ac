"""The comparison on few images: what is compared is what is said, and it can be wrong."""

from __future__ import annotations

import numpy as np
import pytest

from theory_modules.convolutional_ntk import convolutional_ntk
from theory_modules.convolutional_ntk_experiment import (
    KERNELS,
    Experiment,
    accuracy_curves,
    nested_choice,
    network_accuracy,
    standardised,
)
from theory_modules.kernel_input import KernelInputError

SMALL = Experiment(
    sizes=(12, 24), num_relus=2, pooling_radius=1, num_patches=6, patch_size=3, network_width=8
)


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy stripes, upright or level, at a random phase: pooling sees them, single pixels do not."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    phase = generator.integers(2, size=count)
    grid = (np.arange(8)[None, :] + phase[:, None]) % 2 * 2.0 - 1
    images = np.where(labels[:, None, None] == 0, grid[:, None, :], grid[:, :, None])
    return (images + 0.3 * generator.normal(size=images.shape))[:, None].astype(np.float32), labels


def test_every_kernel_learns_stripes_and_none_learns_shuffled_labels() -> None:
    train, train_labels = stripes(40, 0)
    test, test_labels = stripes(60, 1)
    points = list(accuracy_curves(train, train_labels, test, test_labels, KERNELS, SMALL, num_threads=1))
    assert [(p.method, p.num_train) for p in points] == [(m, n) for m in KERNELS for n in (12, 24)]
    assert min(p.accuracy for p in points if p.num_train == 24) > 0.9
    shuffled = np.random.default_rng(2).permutation(test_labels)
    wrong = accuracy_curves(train, train_labels, test, shuffled, ("vanilla",), SMALL, num_threads=1)
    assert max(p.accuracy for p in wrong) < 0.8


def test_the_vanilla_accuracy_is_that_of_plain_regression() -> None:
    train, train_labels = stripes(24, 0)
    test, test_labels = stripes(30, 1)
    train += 2 * np.random.default_rng(5).normal(size=train.shape).astype(np.float32)
    (point,) = accuracy_curves(
        train, train_labels, test, test_labels, ("vanilla",), Experiment(sizes=(24,), num_relus=2)
    )
    rows = nested_choice(train_labels, 24, 0)
    x, z = standardised(train[rows], test)
    kernel = convolutional_ntk(np.concatenate([x, z]), depth=3, dtype="float64")
    targets = np.where(train_labels[rows, None] == [0, 1], 0.9, -0.1)
    scores = kernel[24:, :24] @ np.linalg.solve(kernel[:24, :24], targets)
    assert point.accuracy == (scores.argmax(1) == test_labels).mean()


def test_the_network_learns_stripes() -> None:
    train, train_labels = stripes(40, 0)
    test, test_labels = stripes(60, 1)
    told: list[tuple[int, int]] = []
    score = network_accuracy(
        train, train_labels, test, test_labels, SMALL, lambda name, done, total: told.append((done, total))
    )
    assert score > 0.9
    assert told[-1] == (80, 80)


def test_training_sets_are_nested_and_balanced() -> None:
    labels = np.array([0] * 50 + [1] * 30 + [2] * 4)
    rows = nested_choice(labels, 30, seed=3)
    assert len(set(rows.tolist())) == 30
    np.testing.assert_array_equal(nested_choice(labels, 12, seed=3), rows[:12])
    assert np.bincount(labels[rows[:12]]).tolist() == [4, 4, 4]
    assert np.bincount(labels[rows]).tolist() == [13, 13, 4]


def test_bad_input_is_refused() -> None:
    train, labels = stripes(10, 0)
    with pytest.raises(KernelInputError, match="24 training images are asked for and there are 10"):
        list(accuracy_curves(train, labels, train, labels, ("vanilla",), SMALL))
    with pytest.raises(KernelInputError, match="of one class"):
        list(accuracy_curves(train, 0 * labels, train, labels, ("vanilla",), SMALL))
