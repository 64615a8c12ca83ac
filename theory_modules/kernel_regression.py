"""Classification with a kernel computed beforehand: ridge regression or a support vector machine.

*Ridge*: one regression a class on targets 0.9 (the class) and −0.1 (the others), as in the kernel papers,

    f(x) = k(x, X) (K + ρ 1)⁻¹ Y,       ρ = diag_reg · tr K / N,

in float64; the answer is the class of the largest f. With ``diag_reg=0`` and a neural tangent kernel this
is an infinitely wide network trained to the end by gradient flow on squared loss (Jacot, Gabriel and
Hongler 2018).

*SVM*: one class against another, as libsvm does (:mod:`theory_modules.svm_grid`).

:class:`KernelClassifier` is a scikit-learn estimator: ``fit(k_train_train, y)``,
``predict(k_test_train)``, cuts of the kernel in ``cross_val_score`` and ``GridSearchCV`` on rows and
columns alike. :func:`select_on_folds` tries many settings on given folds at the price of one: an
eigendecomposition, or one SVM path, a fold.

    from theory_modules.ntk import fully_connected_ntk
    model = KernelClassifier(diag_reg=1e-6).fit(fully_connected_ntk(x, depth=3), y)
    model.predict(fully_connected_ntk(x_test, x, depth=3))

    python -m theory_modules.kernel_regression      digits, both solvers

Axes: N training samples, M others, K classes.

Arora, Du, Hu, Li, Salakhutdinov and Wang, *On exact computation with an infinitely wide neural net*,
NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .kernel_checks import (
    FloatingArray,
    NotPositiveSemidefiniteError,
    check_finite,
    checked_kernel,
    checked_labels,
    rows_at_a_time,
)
from .kernel_input import KernelInputError
from .kernel_solvers import (
    check_positive_semidefinite,
    rounding_of_eigenvalues,
    solve_ridge,
    solve_ridge_through_file,
)
from .svm_grid import SvmGrid, fit_svm_grid

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SOLVERS = ("ridge", "svm")
_TYPES = (np.float64, np.float32)
TARGET_OF_CLASS, TARGET_OF_OTHERS = 0.9, -0.1


class KernelClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifier on a precomputed kernel.

    Args:
        solver: ``"ridge"`` or ``"svm"``.
        diag_reg: ridge, relative to the mean diagonal of the kernel (ridge only).
        C: penalty (svm only).
        max_memory: bytes to work in, where the kernel is a memory-mapped file too large for memory (ridge
            only). A kernel that fits is solved in memory all the same.
        scratch_folder: where the factor is written meanwhile; 4N² bytes.

    Attributes:
        classes_: the K labels, ascending.
        weights_: (N, K), ridge only.
        jitter_, smallest_pivot_: what was added to the diagonal beside the ridge, and the smallest squared
            pivot of the factorisation; ridge only.
        machine_: the fitted :class:`~theory_modules.svm_grid.SvmGrid`, svm only.
    """

    def __init__(
        self,
        solver: str = "ridge",
        *,
        diag_reg: float = 0.0,
        C: float = 1.0,
        max_memory: int | None = None,
        scratch_folder: str | Path | None = None,
    ) -> None:
        self.solver = solver
        self.diag_reg = diag_reg
        self.C = C
        self.max_memory = max_memory
        self.scratch_folder = scratch_folder

    def fit(self, X: Any, y: Any) -> KernelClassifier:
        """Fit to ``X`` = k_train_train (N, N) and labels ``y`` (N,).

        Raises:
            KernelInputError: shapes that do not fit, NaN, labels of one class, too little memory.
            NotPositiveSemidefiniteError: with the smallest eigenvalue.
        """
        if self.solver not in SOLVERS:
            raise KernelInputError(f"solver is {self.solver!r}; choose one of {', '.join(SOLVERS)}")
        X, y = validate_data(self, X, y, dtype=_TYPES, ensure_all_finite=False)
        check_classification_targets(y)
        kernel = checked_kernel(X)
        self.classes_, class_of = checked_labels(y, len(kernel))
        if self.solver == "svm":
            check_positive_semidefinite(kernel)
            self.machine_ = fit_svm_grid(kernel, class_of, [self.C])
        else:
            self._fit_ridge(kernel, class_of)
        return self

    def decision_function(self, X: Any) -> FloatArray:
        """Scores (M, K) for ``X`` = k_test_train (M, N); with two classes (M,), positive for the second.

        For more than two classes an SVM's scores are its votes, parted by the sizes of its decisions.
        """
        check_is_fitted(self, "classes_")
        if isinstance(X, np.ndarray) and X.ndim == 2 and X.size and np.issubdtype(X.dtype, np.floating):
            check_finite(X)  # before scikit-learn counts columns
        X = validate_data(self, X, reset=False, dtype=_TYPES, ensure_all_finite=False)
        kernel = checked_kernel(X, columns=self.n_features_in_)
        if self.solver == "svm":
            return _svm_scores(self.machine_, kernel)
        step = rows_at_a_time(kernel.shape[1])
        scores = np.concatenate(
            [kernel[start : start + step] @ self.weights_ for start in range(0, len(kernel), step)]
        )
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """(M,) labels."""
        scores = self.decision_function(X)
        if len(self.classes_) == 2:
            return np.asarray(self.classes_[(scores > 0).astype(int)])
        return np.asarray(self.classes_[scores.argmax(axis=1)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = True
        return tags

    def _fit_ridge(self, kernel: FloatingArray, class_of: IntArray) -> None:
        _check_diag_reg(self.diag_reg)
        targets = one_against_all(class_of, len(self.classes_))
        fits = self.max_memory is None or 16 * kernel.size <= self.max_memory
        if fits:
            solution = solve_ridge(kernel, targets, diag_reg=self.diag_reg)
        else:
            assert self.max_memory is not None
            solution = solve_ridge_through_file(
                kernel,
                targets,
                diag_reg=self.diag_reg,
                max_memory=int(self.max_memory),
                scratch_folder=None if self.scratch_folder is None else Path(self.scratch_folder),
            )
        self.weights_ = solution.weights
        self.jitter_, self.smallest_pivot_ = solution.jitter, solution.smallest_pivot


@dataclass(frozen=True, repr=False)
class FoldSelection:
    """``value`` is the first with the best mean accuracy; ``accuracies`` (values, folds) are shares."""

    value: float
    accuracies: FloatArray


def select_on_folds(
    kernel: Any,
    labels: Any,
    folds: Sequence[tuple[Any, Any]],
    values: Sequence[float],
    *,
    solver: str = "ridge",
) -> FoldSelection:
    """Choose ``diag_reg`` (ridge) or ``C`` (svm, ascending) among ``values`` on given (train, test) rows.

    Args:
        kernel: (N, N), between all samples.
        folds: pairs of row numbers.

    Raises:
        KernelInputError: as :meth:`KernelClassifier.fit`; no folds or values.
    """
    kernel = checked_kernel(kernel)
    labels = np.asarray(labels)
    checked_labels(labels, len(kernel))
    if not len(folds) or not len(values):
        raise KernelInputError("there are no folds or no values to choose from; give at least one of each")
    if solver not in SOLVERS:
        raise KernelInputError(f"solver is {solver!r}; choose one of {', '.join(SOLVERS)}")
    shares = _ridge_shares if solver == "ridge" else _svm_shares
    accuracies = np.empty((len(values), len(folds)))
    for column, (train, test) in enumerate(folds):
        train, test = np.asarray(train), np.asarray(test)
        accuracies[:, column] = shares(kernel, labels, train, test, values)
    return FoldSelection(float(values[int(accuracies.mean(axis=1).argmax())]), accuracies)


def one_against_all(class_of: IntArray, num_classes: int) -> FloatArray:
    """(N, K) targets: 0.9 for the sample's class, −0.1 for the others."""
    targets = np.full((len(class_of), num_classes), TARGET_OF_OTHERS)
    targets[np.arange(len(class_of)), class_of] = TARGET_OF_CLASS
    return targets


def _check_diag_reg(value: float) -> None:
    if not 0 <= value < float("inf"):
        raise KernelInputError(f"diag_reg is {value!r}; give a number of at least 0")


def _ridge_shares(
    kernel: FloatingArray, labels: NDArray[Any], train: IntArray, test: IntArray, values: Sequence[float]
) -> list[float]:
    """All ridges from one eigendecomposition K = Q Λ Qᵀ; eigenvalues of rounding's size count as zero."""
    classes, class_of = checked_labels(labels[train], len(train))
    own = np.asarray(kernel[np.ix_(train, train)], dtype=np.float64)
    eigenvalues, Q = eigh(own)
    allowed = rounding_of_eigenvalues(kernel[: len(train)]) * float(np.abs(eigenvalues).max())
    if eigenvalues[0] < -allowed:
        raise NotPositiveSemidefiniteError(float(eigenvalues[0]), float(eigenvalues[-1]))
    projected = Q.T @ one_against_all(class_of, len(classes))
    across = np.asarray(kernel[np.ix_(test, train)], dtype=np.float64) @ Q
    shares = []
    for value in values:
        _check_diag_reg(value)
        shrunk = np.maximum(eigenvalues, 0) + value * float(np.trace(own)) / len(train)
        inverse = np.divide(1, shrunk, out=np.zeros_like(shrunk), where=shrunk > 1e-15 * eigenvalues[-1])
        scores = across @ (inverse[:, None] * projected)
        shares.append(float((classes[scores.argmax(axis=1)] == labels[test]).mean()))
    return shares


def _svm_shares(
    kernel: FloatingArray, labels: NDArray[Any], train: IntArray, test: IntArray, values: Sequence[float]
) -> FloatArray:
    grid = fit_svm_grid(np.asarray(kernel[np.ix_(train, train)]), labels[train], values)
    predicted = grid.predict(np.asarray(kernel[np.ix_(test, train)]))
    return np.asarray((predicted == labels[test]).mean(axis=1))


def _svm_scores(machine: SvmGrid, kernel: FloatingArray) -> FloatArray:
    decisions = machine.decision_function(kernel)[0]
    num_classes = len(machine.classes)
    if num_classes == 2:
        return np.asarray(-decisions[:, 0])
    votes, sizes = np.zeros((len(kernel), num_classes)), np.zeros((len(kernel), num_classes))
    pair = 0
    for a in range(num_classes):
        for c in range(a + 1, num_classes):
            first = decisions[:, pair] > 0
            votes[:, a] += first
            votes[:, c] += ~first
            sizes[:, a] += decisions[:, pair]
            sizes[:, c] -= decisions[:, pair]
            pair += 1
    return np.asarray(votes + _tie_breaker(votes, sizes))


def _tie_breaker(votes: FloatArray, sizes: FloatArray) -> FloatArray:
    """Below a third of a vote: libsvm's lower class first among equals decides, then nothing is left to
    part.

    Sizes only shape the scores of classes that do not win, so that ``argmax`` is always the vote's answer.
    """
    winner = votes.argmax(axis=1)
    parts: FloatArray = sizes / (3 * (np.abs(sizes) + 1))
    parts[np.arange(len(votes)), winner] = 1 / 3
    return parts


def main() -> None:
    """Digits: ridge and SVM on a tangent kernel, each tuned on folds of 400 images, then 1,397 others."""
    from sklearn.datasets import load_digits

    from .ntk import fully_connected_ntk

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:400], order[400:]
    kernel = fully_connected_ntk(images / 16, depth=3)
    folds = [(np.delete(train, np.s_[k::4]), train[k::4]) for k in range(4)]
    grids = {"ridge": ("diag_reg", [1e-6, 1e-4, 1e-2, 1.0]), "svm": ("C", [0.01, 1.0, 100.0])}
    for solver, (name, values) in grids.items():
        chosen = select_on_folds(kernel, labels, folds, values, solver=solver)
        model = KernelClassifier(solver).set_params(**{name: chosen.value})
        model.fit(kernel[np.ix_(train, train)], labels[train])
        accuracy = model.score(kernel[np.ix_(test, train)], labels[test])
        folded = chosen.accuracies.mean(axis=1).max()
        print(f"{solver:5s} {name} = {chosen.value:g}: {folded:.1%} on folds, {accuracy:.1%} on others")


if __name__ == "__main__":
    main()
