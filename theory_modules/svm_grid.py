"""Support vector machines on one kernel for a whole grid of penalties, one class against another.

For each pair of classes, with y = ±1 and b = y·α, C-SVM is

    minimise bᵀKb/2 − yᵀb   over  Σ b = 0,  b between 0 and y·C;

a sample is given the class with most of the K(K−1)/2 votes, the lower one on a tie. Everything is as libsvm
does it: the stopping rule (violation of the optimality conditions below ``tolerance``), the intercept (mean
over free support vectors), the votes. What differs is the way there, in C (``_svm_loops.c``): the kernel is
shared along the grid, each penalty starts from the solution of the one before, a solution that touches no
penalty is kept for all larger ones, and where the kernel's rank is low, where sequential steps crawl by the
ten million, an interior-point method takes over.

Without a compiler at installation the C code is absent and libsvm, through scikit-learn, runs instead, with
the same decisions up to the tolerance; :func:`active_path` tells which, ``INSTAHIDE_SVM=libsvm`` in the
environment chooses libsvm.

Axes: N training samples, M others, K classes, P penalties.

Fan, Chen and Lin, *Working set selection using second order information*, JMLR 2005; Fine and Scheinberg,
*Efficient SVM training using low-rank kernel representations*, JMLR 2001.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .built_library import built_library
from .kernel_checks import checked_kernel, checked_labels
from .kernel_input import KernelInputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MAX_STEPS = 1_000_000
_SCORES_AT_A_TIME = 1 << 21


@dataclass(frozen=True, repr=False)
class SvmGrid:
    """P fitted machines.

    Attributes:
        classes: the K labels, ascending.
        class_of: (N,) index into ``classes``.
        coefficients: (P, N, K − 1), b of each sample in each of its pairs, libsvm's layout: against class q
            in column q − 1 if q is above the sample's own class, q if below.
        intercepts: (P, K(K−1)/2), pairs in the order (0, 1), (0, 2), ..., (1, 2), ...
        converged: (P,) whether every pair reached the tolerance.
    """

    classes: NDArray[Any]
    class_of: IntArray
    coefficients: FloatArray
    intercepts: FloatArray
    converged: NDArray[np.bool_]

    def decision_function(self, kernel: NDArray[np.floating[Any]]) -> FloatArray:
        """(P, M, K(K−1)/2): positive where a pair votes for its first class. ``kernel`` is (M, N)."""
        found = np.empty((len(self.intercepts), len(kernel), self.intercepts.shape[1]))
        for rows, scores in self._scores(kernel):
            pair = 0
            for a in range(len(self.classes) - 1):
                decisions = self._decisions(scores, a)
                found[:, rows, pair : pair + len(decisions)] = decisions.transpose(1, 2, 0)
                pair += len(decisions)
        return found

    def predict(self, kernel: NDArray[np.floating[Any]]) -> NDArray[Any]:
        """(P, M) labels, by votes. ``kernel`` is (M, N): rows to classify against the training samples."""
        winners = np.empty((len(self.intercepts), len(kernel)), dtype=np.int64)
        for rows, scores in self._scores(kernel):
            votes = np.zeros((len(self.classes), *scores.shape[2:]), dtype=np.int32)
            for a in range(len(self.classes) - 1):
                for_first = self._decisions(scores, a) > 0
                votes[a] += for_first.sum(axis=0, dtype=np.int32)
                votes[a + 1 :] += ~for_first
            winners[:, rows] = votes.argmax(axis=0)
        return np.asarray(self.classes[winners])

    def _scores(self, kernel: NDArray[np.floating[Any]]) -> Iterator[tuple[slice, FloatArray]]:
        """(K, K − 1, P, rows): what each class adds to each of its pairs; some rows at a time."""
        num_classes, num_penalties = len(self.classes), len(self.intercepts)
        own = [np.flatnonzero(self.class_of == a) for a in range(num_classes)]
        weights = [self.coefficients[:, rows].transpose(2, 0, 1).reshape(-1, len(rows)) for rows in own]
        step = max(1, _SCORES_AT_A_TIME // (num_classes * len(weights[0])))
        for start in range(0, len(kernel), step):
            part = kernel[start : start + step]
            scores = np.empty((num_classes, len(weights[0]), len(part)))
            for a in range(num_classes):
                np.matmul(weights[a], part[:, own[a]].T, out=scores[a])
            yield slice(start, start + step), scores.reshape(num_classes, -1, num_penalties, len(part))

    def _decisions(self, scores: FloatArray, a: int) -> FloatArray:
        """(K − 1 − a, P, rows): the pairs (a, a + 1), (a, a + 2), ..."""
        first = a * (2 * len(self.classes) - a - 1) // 2
        intercepts = self.intercepts.T[first : first + len(self.classes) - 1 - a]
        return np.asarray(scores[a, a:] + scores[a + 1 :, a] + intercepts[:, :, None])


def active_path() -> str:
    """Which code trains: ``"c"`` or ``"libsvm"``."""
    return "libsvm" if _library() is None else "c"


def fit_svm_grid(
    kernel: NDArray[np.floating[Any]],
    labels: NDArray[Any],
    penalties: Sequence[float],
    *,
    tolerance: float = 1e-3,
    max_steps: int = MAX_STEPS,
) -> SvmGrid:
    """One machine for each penalty C.

    Args:
        kernel: (N, N), symmetric.
        labels: (N,), at least two different ones.
        penalties: positive, ascending.
        tolerance: largest violation of the optimality conditions, in units of the margin.
        max_steps: sequential steps a pair may take at one penalty; what is not done by then is kept as it
            is and said in ``converged``.

    Raises:
        KernelInputError: shapes, labels, penalties or values that are none of the above.
    """
    kernel = checked_kernel(kernel)
    classes, class_of = checked_labels(labels, len(kernel))
    grid = np.asarray(penalties, dtype=np.float64)
    if grid.ndim != 1 or not grid.size or not (grid > 0).all() or (np.diff(grid) <= 0).any():
        raise KernelInputError(f"penalties are {list(penalties)}; give positive numbers in ascending order")
    if not tolerance > 0:
        raise KernelInputError(f"tolerance is {tolerance!r}; give a positive number, such as 1e-3")
    library = _library()
    if library is None:
        return _fit_with_libsvm(kernel, classes, class_of, grid, tolerance, max_steps)
    return _fit_in_c(library, kernel, classes, class_of, grid, tolerance, max_steps)


def _fit_in_c(
    library: ctypes.CDLL,
    kernel: NDArray[np.floating[Any]],
    classes: NDArray[Any],
    class_of: IntArray,
    penalties: FloatArray,
    tolerance: float,
    max_steps: int,
) -> SvmGrid:
    kernel = np.ascontiguousarray(kernel, dtype=np.float64)
    samples, num_classes = len(kernel), len(classes)
    order = np.argsort(class_of, kind="stable").astype(np.int64)
    first = np.concatenate([[0], np.cumsum(np.bincount(class_of, minlength=num_classes))]).astype(np.int64)
    coefficients = np.zeros((len(penalties), samples, num_classes - 1))
    intercepts = np.empty((len(penalties), num_classes * (num_classes - 1) // 2))
    gaps = np.empty_like(intercepts)
    status = library.instahide_svm_grid(
        *(kernel.ctypes.data, kernel.shape[1], order.ctypes.data, first.ctypes.data, num_classes),
        *(penalties.ctypes.data, len(penalties), tolerance, max_steps),
        *(coefficients.ctypes.data, intercepts.ctypes.data, gaps.ctypes.data),
    )
    if status == -1:
        raise MemoryError(f"no memory for a copy of a kernel of {samples} samples")
    if status == -2:
        raise KernelInputError("two classes have more than 65,536 samples together; leave some out")
    return SvmGrid(classes, class_of, coefficients, intercepts, np.asarray((gaps < tolerance).all(axis=1)))


def _fit_with_libsvm(
    kernel: NDArray[np.floating[Any]],
    classes: NDArray[Any],
    class_of: IntArray,
    penalties: FloatArray,
    tolerance: float,
    max_steps: int,
) -> SvmGrid:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import SVC

    num_classes = len(classes)
    coefficients = np.zeros((len(penalties), len(kernel), num_classes - 1))
    intercepts = np.empty((len(penalties), num_classes * (num_classes - 1) // 2))
    converged = np.ones(len(penalties), dtype=bool)
    for index, penalty in enumerate(penalties):
        machine = SVC(C=penalty, kernel="precomputed", tol=tolerance, max_iter=max_steps, cache_size=500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            machine.fit(kernel, class_of)
        sign = -1 if num_classes == 2 else 1  # scikit-learn turns the two-class machine round
        coefficients[index, machine.support_] = sign * machine.dual_coef_.T
        intercepts[index] = sign * machine.intercept_
        converged[index] = int(np.max(machine.n_iter_)) < max_steps
    return SvmGrid(classes, class_of, coefficients, intercepts, converged)


@cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get("INSTAHIDE_SVM") == "libsvm":
        return None
    library = built_library("_svm_loops")
    return None if library is None else _declared(library)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    library.instahide_svm_grid.argtypes = [
        *(pointer, size, pointer, pointer, size),
        *(pointer, size, real, size),
        *(pointer, pointer, pointer),
    ]
    library.instahide_svm_grid.restype = ctypes.c_int64
    return library
