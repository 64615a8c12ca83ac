"""A kernel's accuracy on few images: balanced draws of scikit-learn's digits, regression without ridge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernel_regression import KernelClassifier

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
            classifier = KernelClassifier(diag_reg=1e-10).fit(kernel[np.ix_(train, train)], labels[train])
            answers = classifier.predict(kernel[np.ix_(test, train)])
            scores.append(float((answers == labels[test]).mean()))
        yield size, np.array(scores)


def print_learning_curve(name: str, kernel: NDArray[Any], labels: NDArray[np.int64]) -> None:
    print(f"{name}: accuracy on {NUM_TEST_IMAGES} test images, mean and sd of 10 draws")
    for size, scores in learning_curve(kernel, labels):
        print(f"  {size:4d} training images   {100 * scores.mean():5.1f} % ± {100 * scores.std(ddof=1):.1f}")
