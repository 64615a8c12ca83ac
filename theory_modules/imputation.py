"""Missing entries of a table filled in by deep matrix factorisation, as a scikit-learn transformer.

**Model** (Arora, Cohen, Hu and Luo, NeurIPS 2019, used on tables). Columns are centred and scaled by what is
observed of them, Z (n × d). Gradient descent on a product W = W_N ··· W_1 from near zero fits the observed
entries; the product grows one singular value after another, so stopping it early is a rank penalty. Tables
of measurements are noisy and of full rank: the step to stop at is chosen by cross-validation over observed
entries (num_folds parts held out side by side), and step 0, which is the column mean, may win.

**Rows that fit has not seen** are not squeezed into the factorisation. What fit learned about a row as such
is its second moment C = WᵀW/n; a row with observed part O and missing part M gets the best linear guess

    z_M = C_MO (C_OO + ρ·I)⁻¹ z_O,                                                                     (1)

with the noise ρ chosen on the same held-out entries. ``transform`` uses (1) for every row, those of ``fit``
included, so a row's result depends on that row and on ``fit`` alone. The factorisation's own completion of
the rows of ``fit`` is kept in ``completed_``.

**Several tables** with the same columns that must stay apart, such as hospitals': ``shared_scaling`` needs
sums of the columns only, each table is fitted in these common units, and ``averaged`` takes the mean of their
second moments, weighted by rows, for each pair of columns over the tables that have both. What leaves a table
are sums over its rows, about 3d + d² numbers that secure aggregation could add up unseen, and no row.

**Limits.** Nothing here knows that a column holds categories: it is a number like any other. Entries missing
for a reason that the other columns do not show bias every method of this kind. A row with nothing observed
gets the means; a column with nothing observed gets zeros.

    python -m theory_modules.imputation          # scikit-learn's breast cancer table, against five others
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .deep_matrix_factorization_descent import one_intra_op_thread
from .deep_matrix_factorization_layers import initial_chain
from .deep_matrix_factorization_problem import Completion, FactorizationInputError
from .deep_matrix_factorization_steps import step_rule

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
NOISES = tuple(np.geomspace(0.01, 10, 13))


class DeepMatrixFactorizationImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Fills NaN in a table (n, d) of numbers (module docstring).

    Args:
        depth: N, layers of the product. Where entries are exact 3 recovers more; in noisy tables 2 does.
        initialization_scale: the smaller, the more the descent goes rank by rank.
        hidden_width: of the layers; ``None`` is min(n, d), no constraint on the rank.
        max_steps: of the descent, at most.
        check_every: steps between two looks at the held-out entries.
        patience: looks without a better one after which the search ends.
        num_folds: parts of the observed entries, each held out once.
        scaling: (means, deviations), each (d,), to use instead of the table's own (``shared_scaling``).
        random_state: of the start and of the parts; a number gives the same result every time.

    Attributes:
        n_steps_: steps the descent took, chosen on held-out entries; 0 where the means were best.
        validation_error_: mean square error on held-out entries there, in squared deviations of a column.
        noise_: ρ of (1).
        means_, deviations_: (d,) of the observed entries; 0 and 1 where a column has none.
        second_moment_: C, (d, d); zero for columns not in ``observed_columns_``.
        completed_: (n, d) the table of ``fit`` as the factorisation completes it, observed entries kept.

    Raises FactorizationInputError (a ValueError) for settings out of range.
    """

    def __init__(
        self,
        depth: int = 2,
        *,
        initialization_scale: float = 1e-2,
        hidden_width: int | None = None,
        max_steps: int = 3000,
        check_every: int = 10,
        patience: int = 20,
        num_folds: int = 5,
        scaling: tuple[FloatArray, FloatArray] | None = None,
        random_state: Any = 0,
    ) -> None:
        self.depth = depth
        self.initialization_scale = initialization_scale
        self.hidden_width = hidden_width
        self.max_steps = max_steps
        self.check_every = check_every
        self.patience = patience
        self.num_folds = num_folds
        self.scaling = scaling
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Learn from the observed entries of ``X`` (n, d), NaN where missing; ``y`` is ignored."""
        self._check()
        table = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan")
        known = np.isfinite(table)
        self.means_, self.deviations_ = shared_scaling([table]) if self.scaling is None else self.scaling
        Z = np.where(known, (table - self.means_) / self.deviations_, 0.0)
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        folds = np.where(known, random.randint(self.num_folds, size=Z.shape), -1)
        with one_intra_op_thread(), torch.no_grad():
            found = self._choose_steps(Z, known, folds, seed)
            self.n_steps_, self.validation_error_ = found.steps, found.error
            final = _Descent(Z[None], known[None], self, seed)
            final.advance(found.steps)
            W = final.matrices()[0] if found.steps else np.zeros_like(Z)
        W[:, ~known.any(0)] = 0.0  # nothing was learned there but the random start
        self.observed_columns_ = known.any(0)
        self.second_moment_ = W.T @ W / len(W)
        self.noise_ = _choose_noise(Z, folds, found.moments) if found.steps else 1.0
        self.completed_ = np.where(known, table, W * self.deviations_ + self.means_)
        return self

    def transform(self, X: ArrayLike) -> FloatArray:
        """``X`` (m, d) with NaN filled in by (1); what is observed stays as it is."""
        check_is_fitted(self)
        table = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        known = np.isfinite(table)
        Z = np.where(known, (table - self.means_) / self.deviations_, 0.0)
        guesses = conditional_means(Z, known, self.second_moment_, self.noise_)
        filled: FloatArray = np.where(known, table, guesses * self.deviations_ + self.means_)
        return filled

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _choose_steps(self, Z: FloatArray, known: BoolArray, folds: NDArray[np.int64], seed: int) -> _Choice:
        """The step at which held-out entries are met best, all folds descending side by side."""
        present = [fold for fold in range(self.num_folds) if (folds == fold).any() and (folds != fold).any()]
        held = np.stack([folds == fold for fold in present]) if present else np.zeros((0, *Z.shape), bool)
        training = known & ~held
        usable = training.any((1, 2)) if len(held) else np.zeros(0, bool)
        held, training = held[usable], training[usable]
        if not len(held):
            return _Choice(0, 0.0, {})
        ids = np.array(present)[usable].tolist()
        best = _Choice(0, float(np.square(Z)[held.any(0)].mean()), {})
        descent = _Descent(np.broadcast_to(Z, training.shape), training, self, seed)
        for step in range(self.check_every, self.max_steps + 1, self.check_every):
            descent.advance(self.check_every)
            found = descent.matrices()
            error = float(np.square(found - Z)[held].mean())
            if error < best.error:
                best = _Choice(
                    step, error, {fold: W.T @ W / len(W) for fold, W in zip(ids, found, strict=True)}
                )
            elif step - best.steps >= self.patience * self.check_every:
                break
        return best

    def _check(self) -> None:
        least = {
            "depth": 1,
            "hidden_width": 1,
            "max_steps": 0,
            "check_every": 1,
            "patience": 1,
            "num_folds": 2,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | np.integer) or value < bound):
                raise FactorizationInputError(f"{name} is {value!r}; give a whole number of at least {bound}")
        if not 0 < self.initialization_scale < np.inf:
            raise FactorizationInputError(
                f"initialization_scale is {self.initialization_scale!r}; give a positive number"
            )


def shared_scaling(tables: Sequence[ArrayLike]) -> tuple[FloatArray, FloatArray]:
    """(means, deviations), each (d,), of several tables (n_i, d) as if they were one, NaN where missing.

    From each table's counts, sums and sums of squares alone, about a first mean so that large columns keep
    their digits.
    """
    arrays = [np.asarray(table, dtype=np.float64) for table in tables]
    known = [np.isfinite(array) for array in arrays]
    counts = np.maximum(np.sum([k.sum(0) for k in known], axis=0), 1)
    means = np.sum([np.where(k, a, 0.0).sum(0) for a, k in zip(arrays, known, strict=True)], axis=0) / counts
    squares = [np.where(k, np.square(a - means), 0.0).sum(0) for a, k in zip(arrays, known, strict=True)]
    spread = np.sqrt(np.sum(squares, axis=0) / counts)
    # A spread of rounding errors alone is no spread.
    flat = spread <= 1e-12 * np.maximum(np.abs(means), 1e-300)
    return means, np.where(flat, 1.0, spread)


def averaged(fitted: Sequence[DeepMatrixFactorizationImputer]) -> DeepMatrixFactorizationImputer:
    """One imputer from several that were fitted with the same ``scaling``: second moments and noise averaged
    over all their rows.

    Raises FactorizationInputError for none, or different scalings.
    """
    if not fitted or any(
        not np.array_equal(one.means_, fitted[0].means_)
        or not np.array_equal(one.deviations_, fitted[0].deviations_)
        for one in fitted
    ):
        raise FactorizationInputError("averaged needs imputers fitted with one scaling; see shared_scaling")
    sizes = np.array([len(one.completed_) for one in fitted], dtype=np.float64)
    shared = deepcopy(fitted[0])
    del shared.completed_  # of one table's rows
    columns = np.stack([one.observed_columns_ for one in fitted]).astype(np.float64)
    weights = sizes[:, None, None] * columns[:, :, None] * columns[:, None, :]
    moments = np.stack([one.second_moment_ for one in fitted])
    mean = (weights * moments).sum(0) / np.maximum(weights.sum(0), 1.0)
    # Entries with different weights need not make a second moment; the nearest one does.
    values, vectors = np.linalg.eigh(mean)
    shared.second_moment_ = vectors * np.maximum(values, 0.0) @ vectors.T
    shared.observed_columns_ = np.any([one.observed_columns_ for one in fitted], axis=0)
    shared.noise_ = float(np.average([one.noise_ for one in fitted], weights=sizes))
    return shared


@dataclass(frozen=True)
class _Choice:
    """Steps taken, held-out mean square error there, and WᵀW/n where each fold was held out."""

    steps: int
    error: float
    moments: dict[int, FloatArray]


class _Descent:
    """S tables (S, n, d) descending side by side, in float64 from one start."""

    def __init__(
        self, tables: FloatArray, known: BoolArray, settings: DeepMatrixFactorizationImputer, seed: int
    ) -> None:
        observed, mask = (torch.tensor(np.array(part, dtype=np.float64)) for part in (tables, known))
        self._problem = Completion(observed, mask)
        self._chain = initial_chain(
            (tables.shape[1], tables.shape[2]),
            depth=settings.depth,
            scale=settings.initialization_scale,
            seeds=[seed] * len(tables),
            hidden_width=settings.hidden_width,
            dtype=torch.float64,
        )
        self._rule = step_rule("capped-movement", self._chain, self._problem, None)

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            residual = self._problem.residual(self._chain.forward())
            if not float(residual.abs().max()):
                return  # nothing is left to descend, and a gradient of zero has no direction
            self._chain.backward(self._problem.loss_gradient(residual))
            self._rule.step(self._chain)

    def matrices(self) -> FloatArray:
        found: FloatArray = self._chain.forward().numpy().copy()
        return found


def conditional_means(Z: FloatArray, known: BoolArray, C: FloatArray, noise: float) -> FloatArray:
    """(n, d): the best linear guess (1) of every entry from the known ones of its row."""
    guesses = np.zeros_like(Z)
    patterns, membership = np.unique(known, axis=0, return_inverse=True)
    for number, observed in enumerate(patterns):
        rows = membership.reshape(-1) == number
        if observed.any():
            inner = C[np.ix_(observed, observed)] + noise * np.eye(int(observed.sum()))
            guesses[rows] = np.linalg.solve(inner, Z[np.ix_(rows, observed)].T).T @ C[observed]
    return guesses


def _choose_noise(Z: FloatArray, folds: NDArray[np.int64], moments: dict[int, FloatArray]) -> float:
    """ρ of (1) with which the folds' second moments meet the entries they have not seen."""
    errors = {}
    for noise in NOISES:
        square, count = 0.0, 0
        for fold, C in moments.items():
            held = folds == fold
            guesses = conditional_means(Z, (folds >= 0) & ~held, C, noise)
            square += float(np.square(guesses - Z)[held].sum())
            count += int(held.sum())
        errors[noise] = square / count
    return float(min(errors, key=errors.__getitem__))


if __name__ == "__main__":
    from .imputation_comparison import main

    main()
