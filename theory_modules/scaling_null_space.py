"""Which per-tensor scalings leave a function alone: exact arithmetic on a numerical Jacobian.

Scale tensor i by e^(s·x_i). The outputs do not move iff J·x = 0, J[k, i] = <∂f_k/∂w_i, w_i> (one row a
random cotangent). The null space of J, at random weights and inputs, is therefore exactly the space of
scalings that keep the function. It has small rational entries; reduced to echelon form it reads like a list
of identities, e.g. (query +1, key −1). Tensors that shall share *one* growing rate need a 0/1 vector in it,
found by integer programming.

Legend: K rows (cotangents), T tensors, R rank of J.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

FloatArray = NDArray[np.float64]
RANK_TOLERANCE = 1e-9  # seen: 1e-15 for true identities, above 1e-3 for everything else


def echelon_rows(jacobian: FloatArray) -> tuple[FloatArray, tuple[float, float]]:
    """(R, T) reduced echelon form of the row space of J (K, T), entries rounded to small fractions.

    Also returns the spectral gap: (largest singular value taken as zero, smallest taken as not), relative.
    """
    _, values, right = np.linalg.svd(jacobian, full_matrices=True)
    largest = values[0] if len(values) and values[0] > 0 else 1.0
    relative = values / largest if np.any(values) else np.zeros_like(values)
    rank = int(np.sum(relative > RANK_TOLERANCE))
    zero = float(relative[rank]) if rank < len(relative) else 0.0
    kept = float(relative[rank - 1]) if rank else math.inf
    return _snap(_reduce(right[:rank].copy())), (zero, kept)


def _reduce(rows: FloatArray) -> FloatArray:
    """Gauss-Jordan elimination; pivots go to the leftmost columns that can bear one."""
    row = 0
    for column in range(rows.shape[1]):
        if row == len(rows):
            break
        best = row + int(np.argmax(np.abs(rows[row:, column])))
        if abs(rows[best, column]) < 1e-7:
            rows[row:, column] = 0.0
            continue
        rows[[row, best]] = rows[[best, row]]
        rows[row] /= rows[row, column]
        others = np.arange(len(rows)) != row
        rows[others] -= np.outer(rows[others, column], rows[row])
        row += 1
    return rows


def _snap(rows: FloatArray) -> FloatArray:
    """Entries within 1e-6 of a fraction with denominator up to 12 become that fraction."""
    snapped = rows.copy()
    for index, value in np.ndenumerate(rows):
        nearest = float(Fraction(float(value)).limit_denominator(12))
        if abs(nearest - value) < 1e-6:
            snapped[index] = nearest
    return snapped


def null_basis(rows: FloatArray, num_tensors: int) -> FloatArray:
    """(T − R, T) basis of the null space of an echelon form, one vector a free column."""
    pivots = [int(np.argmax(np.abs(row) > 0)) for row in rows]
    free = [column for column in range(num_tensors) if column not in pivots]
    basis = np.zeros((len(free), num_tensors))
    for number, column in enumerate(free):
        basis[number, column] = 1.0
        for row, pivot in zip(rows, pivots, strict=True):
            basis[number, pivot] = -row[column]
    return basis


def best_common_set(rows: FloatArray, weights: FloatArray, *, containing: int | None = None) -> list[int]:
    """Indices of the heaviest set whose 0/1 vector is annihilated by ``rows``; [] if there is none.

    ``rows`` may have more columns than there are ``weights``: those unknowns are integers of any size.
    ``containing``: only sets with this tensor. Solved exactly as an integer program.
    """
    num_tensors, extra = len(weights), rows.shape[1] - len(weights)
    if not num_tensors:
        return []
    lower, upper = np.zeros(num_tensors), np.ones(num_tensors)
    if containing is not None:
        lower[containing] = 1
    solved = milp(
        np.concatenate([-weights, np.zeros(extra)]),
        integrality=np.ones(num_tensors + extra),
        bounds=Bounds(np.append(lower, np.full(extra, -64)), np.append(upper, np.full(extra, 64))),
        constraints=LinearConstraint(rows, 0, 0) if len(rows) else (),
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        return []
    found = np.round(solved.x)
    exact = np.allclose(rows @ found, 0, atol=1e-6)
    return [int(index) for index in np.flatnonzero(found[:num_tensors])] if exact else []
