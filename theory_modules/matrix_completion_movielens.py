"""MovieLens 100k by deep factorisation, with the stopping step chosen on a validation part.

The data set's licence allows research use and forbids passing it on, so it is read from a folder of the
user's (``u1.base`` and ``u1.test`` of the official archive) and nothing of it is kept. Ratings are real data
of full rank with noise: the descent must be stopped, and the step to stop at is part of the method. A tenth
of the training ratings is held out to choose it; then all training ratings are used for that many steps, and
the test ratings are looked at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .deep_matrix_factorization_descent import one_intra_op_thread
from .deep_matrix_factorization_layers import LayerChain, initial_chain
from .deep_matrix_factorization_problem import Completion, FactorizationInputError
from .deep_matrix_factorization_steps import GradientDescent, step_rule

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Ratings:
    """Row, column and value of each rating, (m,) each; rows and columns count from 0."""

    users: IntArray
    items: IntArray
    values: FloatArray

    def part(self, chosen: NDArray[np.bool_]) -> Ratings:
        return Ratings(self.users[chosen], self.items[chosen], self.values[chosen])


@dataclass(frozen=True)
class MovieLensResult:
    """``rmse`` on the test ratings; ``steps`` and ``validation_rmse`` as chosen without them.

    ``validation_curve`` holds (step, validation RMSE) of every look at the validation part.
    """

    rmse: float
    validation_rmse: float
    steps: int
    num_training: int
    num_test: int
    validation_curve: tuple[tuple[int, float], ...] = ()

    def __str__(self) -> str:
        return (
            f"test RMSE {self.rmse:.4f} after {self.steps} steps, the least validation RMSE "
            f"({self.validation_rmse:.4f}); {self.num_training} training and {self.num_test} test ratings"
        )


def read_ratings(path: Path) -> Ratings:
    """A tab-separated file of user, item, rating, timestamp.

    Raises:
        FactorizationInputError: no such file, or a line that is not four whole numbers, ratings 1 to 5.
    """
    try:
        table = np.loadtxt(path, dtype=np.int64, ndmin=2)
    except OSError as error:
        raise FactorizationInputError(
            f"{path} cannot be read; give the folder of MovieLens 100k that holds u1.base and u1.test"
        ) from error
    except ValueError as error:
        raise FactorizationInputError(f"{path} is not a table of whole numbers: {error}") from error
    if table.shape[1:] != (4,) or not len(table):
        raise FactorizationInputError(f"{path} has shape {table.shape}; give user, item, rating, timestamp")
    # Some copies carry extra rows of a user 0.
    table = table[table[:, 0] > 0]
    if table[:, 1].min() < 1 or table[:, 2].min() < 1 or table[:, 2].max() > 5:
        raise FactorizationInputError(f"{path} holds an item below 1 or a rating outside 1 to 5")
    return Ratings(table[:, 0] - 1, table[:, 1] - 1, table[:, 2].astype(np.float64))


def movielens(
    folder: Path,
    *,
    depth: int = 2,
    hidden_width: int = 64,
    initialization_scale: float = 1e-3,
    seed: int = 0,
    max_steps: int = 1500,
    check_every: int = 20,
    patience: int = 15,
    progress: Callable[[int, float], None] | None = None,
) -> MovieLensResult:
    """RMSE on ``u1.test`` after the descent on ``u1.base``; predictions are clipped to 1 .. 5.

    The search stops after ``patience`` checks without a better validation error.
    """
    training, test = read_ratings(folder / "u1.base"), read_ratings(folder / "u1.test")
    shape = (
        int(max(training.users.max(), test.users.max())) + 1,
        int(max(training.items.max(), test.items.max())) + 1,
    )
    held_out = np.random.default_rng(seed).random(len(training.values)) < 0.1
    validation = training.part(held_out)
    best, best_step = np.inf, 0
    curve: list[tuple[int, float]] = []
    with one_intra_op_thread(), torch.no_grad():
        run = _Run(training.part(~held_out), shape, depth, hidden_width, initialization_scale, seed)
        for step in range(check_every, max_steps + 1, check_every):
            run.advance(check_every)
            error = rmse(run.matrix(), validation)
            curve.append((step, error))
            if progress is not None:
                progress(step, error)
            if error < best:
                best, best_step = error, step
            elif step - best_step >= patience * check_every:
                break
        final = _Run(training, shape, depth, hidden_width, initialization_scale, seed)
        final.advance(best_step)
        found = rmse(final.matrix(), test)
    return MovieLensResult(
        found, float(best), best_step, len(training.values), len(test.values), tuple(curve)
    )


def rmse(matrix: FloatArray, ratings: Ratings) -> float:
    """Root mean square error of the clipped predictions."""
    predicted = np.clip(matrix[ratings.users, ratings.items], 1, 5)
    return float(np.sqrt(np.square(predicted - ratings.values).mean()))


class _Run:
    """A descent that can be advanced by so many steps and looked at."""

    def __init__(
        self, ratings: Ratings, shape: tuple[int, int], depth: int, hidden_width: int, scale: float, seed: int
    ) -> None:
        observed, mask = torch.zeros(1, *shape), torch.zeros(1, *shape)
        observed[0, ratings.users, ratings.items] = torch.as_tensor(ratings.values, dtype=torch.float32)
        mask[0, ratings.users, ratings.items] = 1
        self._problem = Completion(observed, mask)
        self._chain: LayerChain = initial_chain(
            shape, depth=depth, scale=scale, seeds=[seed], hidden_width=hidden_width
        )
        self._rule: GradientDescent = step_rule("capped-movement", self._chain, self._problem, None)
        self._residual: torch.Tensor | None = None

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self._residual = self._problem.residual(self._chain.forward(), out=self._residual)
            self._chain.backward(self._problem.loss_gradient(self._residual))
            self._rule.step(self._chain)

    def matrix(self) -> FloatArray:
        return self._chain.forward()[0].double().numpy()


if __name__ == "__main__":
    import sys

    from .matrix_completion_experiments import main

    main(["--experiment", "movielens", *sys.argv[1:]])
