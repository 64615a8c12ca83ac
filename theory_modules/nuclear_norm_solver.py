"""How the nuclear norm is minimised: a warm start, then proximal steps solved by semismooth Newton.

Write D_τ for the shrinkage of singular values by τ. The augmented Lagrangian of the dual is, for a primal X
and τ > 0,

    φ(λ) = −⟨λ, b⟩ + |D_τ(X + τA*(λ))|²_F / 2τ,      ∇φ = A(D_τ(X + τA*(λ))) − b,

smooth, convex, with the generalised Hessian τ·A D'_τ A*. Each *proximal step* minimises φ by Newton's method,
linear systems by conjugate gradients (four products of matrices an iteration), and sets X ← D_τ(X + τA*(λ));
τ grows from step to step, so that the steps converge faster than linearly, near the recovery threshold too,
where alternating directions crawl. This is the method of Jiang, Sun and Toh (2013) on the problem's dual.
A hundred steps of alternating directions (step length 1.618) come first; they are cheap and find the rank.

All constraints here have A A* = 1: completion by itself, measurements after a QR factorisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from .nuclear_norm_shrinkage import ShrunkMatrix

FloatArray = NDArray[np.float64]

WARM_STEPS = 100
MAX_NEWTON, MAX_CONJUGATE_GRADIENTS = 20, 500
GROWTH = 1.5


class Constraints(Protocol):
    """A(X) = b with orthonormal rows."""

    shape: tuple[int, int]
    values: FloatArray

    def measure(self, X: FloatArray) -> FloatArray:
        """A(X), shaped as ``values``."""

    def adjoint(self, y: FloatArray) -> FloatArray:
        """A*(y): (n, p)."""


class EntryConstraints:
    """Known entries; dual variables are (n, p) with zeros elsewhere."""

    def __init__(self, observed: FloatArray, mask: NDArray[np.bool_]) -> None:
        self.shape = (observed.shape[0], observed.shape[1])
        self.values = np.where(mask, observed, 0.0)
        self._mask = mask.astype(np.float64)

    def measure(self, X: FloatArray) -> FloatArray:
        return X * self._mask

    def adjoint(self, y: FloatArray) -> FloatArray:
        return y


class MeasurementConstraints:
    """⟨A_i, X⟩ = b_i, turned into orthonormal measurements: with Aᵀ = QR, Qᵀ vec(X) = R⁻ᵀ b."""

    def __init__(self, matrices: FloatArray, b: FloatArray) -> None:
        self.shape = (matrices.shape[1], matrices.shape[2])
        flat = matrices.reshape(len(matrices), -1)
        self.independent = len(flat) <= flat.shape[1]
        if self.independent:
            self._Q, R = np.linalg.qr(flat.T)
            diagonal = np.abs(np.diag(R))
            self.independent = bool(diagonal.min() > 1e-12 * diagonal.max())
        if self.independent:
            self.values = np.linalg.solve(R.T, b)

    def measure(self, X: FloatArray) -> FloatArray:
        return np.asarray(X.reshape(-1) @ self._Q)

    def adjoint(self, y: FloatArray) -> FloatArray:
        return np.asarray((self._Q @ y).reshape(self.shape))


@dataclass
class Solution:
    """The best feasible pair so far: ``lower`` ≤ optimum ≤ ``upper``."""

    matrix: FloatArray
    upper: float
    dual_matrix: FloatArray
    lower: float
    iterations: int = 0

    def improve(self, constraints: Constraints, X: FloatArray, dual: FloatArray) -> None:
        """Make X and the dual variable feasible; keep either where its bound is better."""
        X = X + constraints.adjoint(constraints.values - constraints.measure(X))
        upper = float(np.linalg.svd(X, compute_uv=False).sum())
        spread = constraints.adjoint(dual)
        shrink = max(1.0, float(np.linalg.norm(spread, 2)))
        lower = float((dual * constraints.values).sum()) / shrink
        if upper < self.upper:
            self.matrix, self.upper = X, upper
        if lower > self.lower:
            self.dual_matrix, self.lower = spread / shrink, lower


def minimize(constraints: Constraints, *, gap: float, max_iter: int) -> Solution:
    """Iterate until the certified gap is small enough, or ``max_iter`` proximal steps."""
    with threadpool_limits(limits=1, user_api="blas"):  # at these sizes a second thread only costs
        X = constraints.adjoint(constraints.values)
        best = Solution(X, float(np.linalg.svd(X, compute_uv=False).sum()), np.zeros(constraints.shape), 0.0)
        largest = float(np.linalg.norm(X, 2))
        if largest == 0:
            return best
        X, dual, tau = _alternate(constraints, X, largest)
        best.improve(constraints, X, dual)
        tau *= 4
        while best.upper - best.lower > gap and best.iterations < max_iter:
            X, dual = _proximal_step(constraints, X, dual, tau, largest)
            best.improve(constraints, X, dual)
            best.iterations += 1
            tau *= GROWTH
    return best


def _alternate(
    constraints: Constraints, X: FloatArray, largest: float
) -> tuple[FloatArray, FloatArray, float]:
    """Alternating directions on the dual: (X, λ, τ) to start from."""
    tau, b = 0.1 * largest, constraints.values
    dual = b / largest
    for _ in range(WARM_STEPS):
        Z = X + tau * constraints.adjoint(dual)
        ball = (Z - ShrunkMatrix(Z, tau).matrix) / tau  # singular values cut off at one
        dual = constraints.measure(ball) - (constraints.measure(X) - b) / tau
        X = X + 1.618 * tau * (constraints.adjoint(dual) - ball)
    return X, dual, tau


def _proximal_step(
    constraints: Constraints, X: FloatArray, dual: FloatArray, tau: float, scale: float
) -> tuple[FloatArray, FloatArray]:
    """Minimise φ from ``dual``; returns the new X and λ."""
    b = constraints.values

    def shrunk(at: FloatArray) -> tuple[ShrunkMatrix, float]:
        point = ShrunkMatrix(X + tau * constraints.adjoint(at), tau)
        return point, float(-(at * b).sum() + np.square(point.values).sum() / (2 * tau))

    point, height = shrunk(dual)
    for _ in range(MAX_NEWTON):
        gradient = constraints.measure(point.matrix) - b
        size = float(np.linalg.norm(gradient))
        # A tenth of the step X itself makes is enough; below rounding nothing is gained.
        if size <= max(1e-13 * scale, 0.05 * float(np.linalg.norm(point.matrix - X))):
            break
        move = _newton_direction(constraints, point, gradient, tau, size / scale)
        slope, length = float((gradient * move).sum()), 1.0
        while True:
            tried = dual + length * move
            new_point, new_height = shrunk(tried)
            if new_height <= height + 1e-4 * length * slope + 1e-12 * abs(height) or length < 1e-6:
                break
            length /= 2
        dual, point, height = tried, new_point, new_height
    return point.matrix, dual


def _newton_direction(
    constraints: Constraints, point: ShrunkMatrix, gradient: FloatArray, tau: float, relative: float
) -> FloatArray:
    """(τ A D' A* + ε) x = −∇φ by conjugate gradients, more exactly as the gradient vanishes."""
    ridge = 1e-2 * tau * min(1e-3, 0.1 * relative)
    x, rest = np.zeros_like(gradient), -gradient
    direction, square = rest.copy(), float(np.square(rest).sum())
    enough = square * min(1e-2, relative) ** 2
    for _ in range(MAX_CONJUGATE_GRADIENTS):
        image = (
            tau * constraints.measure(point.derivative(constraints.adjoint(direction))) + ridge * direction
        )
        length = square / float((direction * image).sum())
        x += length * direction
        rest = rest - length * image
        before, square = square, float(np.square(rest).sum())
        if square <= enough:
            break
        direction = rest + (square / before) * direction
    return x
