"""A kernel's accuracy on few images: balanced draws of scikit-learn's digits, regression without ridge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_TEST_IMAGES = 797


def learning_curve(
    kernel: NDArray[Any],
    labels: NDArray[np.int64],
    *,
    sizes: tuple[int, ...] = (10, 20, 40, 80, 160, 320),
    repeats: int = 10,
    seed: int = 0,
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """For each number of training images (a multiple of ten), the accuracies of ``repeats`` balanced draws.

    ``kernel`` (N, N) between all digits, ``labels`` (N,); 797 of them are kept for the test.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    test, pool = order[:NUM_TEST_IMAGES], order[NUM_TEST_IMAGES:]
    for size in sizes:
        scores = []
        for _ in range(repeats):
            draws = [
                generator.choice(pool[labels[pool] == digit], size // 10, replace=False)
                for digit in range(10)
            ]
            train = np.concatenate(draws)
            k_train_train, k_test_train = kernel[np.ix_(train, train)], kernel[np.ix_(test, train)]
            scores.append(accuracy(k_train_train, labels[train], k_test_train, labels[test]))
        yield size, np.array(scores)


def accuracy(
    k_train_train: NDArray[Any],
    train_labels: NDArray[np.int64],
    k_test_train: NDArray[Any],
    test_labels: NDArray[np.int64],
) -> float:
    """Share of right answers of K_test,train K_train,train⁻¹ Y, targets 0.9 and −0.1."""
    targets = np.where(train_labels[:, None] == np.arange(10), 0.9, -0.1)
    regular = k_train_train.astype(np.float64)
    regular[np.diag_indices_from(regular)] += 1e-10 * regular.trace() / len(regular)
    scores = k_test_train.astype(np.float64) @ np.linalg.solve(regular, targets)
    return float((scores.argmax(1) == test_labels).mean())


def print_learning_curve(name: str, kernel: NDArray[Any], labels: NDArray[np.int64]) -> None:
    print(f"{name}: accuracy on {NUM_TEST_IMAGES} test images, mean and sd of 10 draws")
    for size, scores in learning_curve(kernel, labels):
        print(f"  {size:4d} training images   {100 * scores.mean():5.1f} % ± {100 * scores.std(ddof=1):.1f}")
