"""Nuclear-norm minimisation: the convex way to fill in a matrix, solved to a certificate.

**Problem** (Srebro, Rennie, Jaakkola 2004; Candès and Recht 2009). Among all X that agree with what is known,
take the one whose singular values have the smallest sum:

    minimise |X|_*   subject to   A(X) = b.

**Certificate.** Its dual is  maximise ⟨λ, b⟩ subject to |A*(λ)|₂ ≤ 1  (largest singular value). Any X that
obeys A(X) = b bounds the optimum from above, any such λ from below; ``duality_gap`` is the difference of two
such bounds, both recomputed from scratch with feasibility made exact (X is corrected by A*(b − A(X)), λ
divided by max(1, |A*(λ)|₂)). It needs no trust in the solver. For completion A*(λ) is λ spread over the
observed entries.

**What it is the baseline for.** Gunasekar et al. (2017) conjectured that gradient descent on depth-2
factorisations finds this X. ``deep_matrix_factorization`` finds solutions of larger nuclear norm and smaller
rank, and the hidden matrix from fewer entries.

**Assumptions.** Entries are exact: noise is not modelled (``soft_impute`` does). Entries and gap share a
unit; a gap below about 1e-13 of the norm is out of float64's reach.

>>> import numpy as np
>>> result = complete_by_nuclear_norm(np.array([[1.0, 2.0], [2.0, 0.0]]), np.array([[1, 1], [1, 0]]))
>>> bool(result.duality_gap <= 1e-7), round(result.nuclear_norm, 6), round(float(result.matrix[1, 1]), 3)
(True, 4.5, 2.0)

Run ``python -m theory_modules.nuclear_norm`` for gap against time on 100 × 100 matrices of rank 5.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .nuclear_norm_solver import Constraints, EntryConstraints, MeasurementConstraints, Solution, minimize

__all__ = ["NuclearNormInputError", "NuclearNormResult", "complete_by_nuclear_norm", "sense_by_nuclear_norm"]

FloatArray = NDArray[np.float64]


class NuclearNormInputError(ValueError):
    """An argument is wrong; the message names it and what to do."""


@dataclass(frozen=True)
class NuclearNormResult:
    """A matrix with proof of how far from optimal it can be.

    ``matrix`` (n, p) obeys the constraints to rounding; its nuclear norm is within ``duality_gap`` of the
    least possible, since ``dual_matrix`` (n, p), of spectral norm at most one and built from the constraints
    alone, has inner product ``nuclear_norm − duality_gap`` with every feasible matrix.
    """

    matrix: FloatArray
    nuclear_norm: float
    duality_gap: float
    dual_matrix: FloatArray
    converged: bool
    n_iter: int
    seconds: float


def complete_by_nuclear_norm(
    observed: Any, mask: Any, *, gap: float = 1e-7, max_iter: int = 200
) -> NuclearNormResult:
    """The matrix of least nuclear norm that keeps ``observed`` (n, p) where ``mask`` is True.

    Args:
        gap: certified distance from the optimum to stop at, in the entries' unit.
        max_iter: proximal steps at most; ``converged`` says whether the gap was reached.

    Raises:
        NuclearNormInputError: shapes differ, nothing is observed, or an observed entry is not finite.
    """
    values, known = np.asarray(observed, dtype=np.float64), np.asarray(mask)
    if values.ndim != 2 or known.shape != values.shape:
        raise NuclearNormInputError(
            f"observed has shape {values.shape} and mask {known.shape}; give both as (n, p)"
        )
    known = known.astype(bool)
    if not known.any():
        raise NuclearNormInputError("mask marks no entry as observed; there is nothing to complete from")
    if not np.isfinite(values[known]).all():
        raise NuclearNormInputError("an observed entry is not finite; set its mask to False")
    return _solve(EntryConstraints(values, known), gap, max_iter)


def sense_by_nuclear_norm(
    measurements: Any, values: Any, *, gap: float = 1e-7, max_iter: int = 200
) -> NuclearNormResult:
    """The matrix of least nuclear norm with ⟨A_i, X⟩ = b_i: ``measurements`` (m, n, p), ``values`` (m,).

    Raises:
        NuclearNormInputError: shapes do not fit, a number is not finite, or measurements depend on each
        other.
    """
    matrices, b = np.asarray(measurements, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if matrices.ndim != 3 or b.shape != matrices.shape[:1]:
        raise NuclearNormInputError(
            f"measurements have shape {matrices.shape} and values {b.shape}; give (m, n, p) and (m,)"
        )
    if not (np.isfinite(matrices).all() and np.isfinite(b).all()):
        raise NuclearNormInputError("a measurement or a value is not finite; leave it out")
    constraints = MeasurementConstraints(matrices, b)
    if not constraints.independent:
        raise NuclearNormInputError("the measurements are linearly dependent; leave out what others imply")
    return _solve(constraints, gap, max_iter)


def _solve(constraints: Constraints, gap: float, max_iter: int) -> NuclearNormResult:
    if not gap > 0:
        raise NuclearNormInputError(f"gap is {gap!r}; give a positive number")
    start = time.process_time()
    best: Solution = minimize(constraints, gap=gap, max_iter=max_iter)
    return NuclearNormResult(
        matrix=best.matrix,
        nuclear_norm=best.upper,
        duality_gap=best.upper - best.lower,
        dual_matrix=best.dual_matrix,
        converged=best.upper - best.lower <= gap,
        n_iter=best.iterations,
        seconds=time.process_time() - start,
    )


def main() -> None:
    """Gap against time on the published instances."""
    from .matrix_completion_problems import completion_problem

    print("100 x 100, rank 5, seed 0; CPU seconds to each certified gap, and the error of the solution")
    for count in (2000, 2500, 3000, 5000):
        truth, mask = completion_problem(100, 5, count, seed=0)
        line = []
        for gap in (1e-3, 1e-5, 1e-7):
            result = complete_by_nuclear_norm(truth, mask, gap=gap)
            line.append(f"{gap:.0e}: {result.seconds:.2f} s")
        error = np.square(result.matrix - truth).mean()
        print(f"{count} entries  {', '.join(line)}  norm {result.nuclear_norm:.5f}  error {error:.2e}")


if __name__ == "__main__":
    main()
