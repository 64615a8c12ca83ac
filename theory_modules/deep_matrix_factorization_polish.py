"""The last digits: minimum-norm Gauss-Newton steps once the loss is small.

When the fit is nearly done the layers barely move any more, and gradient flow is the flow of the linearised
model. Its limit is known in closed form: the *smallest* change of the layers that cancels the residual,

    ΔW_j = −A_jᵀ Z B_jᵀ,      (J Jᵀ) z = r,      J Jᵀ z = A( Σ_j A_jA_jᵀ Z B_jᵀB_j ),   Z = A*(z),

with A_j = W_N···W_{j+1} and B_j = W_{j−1}···W_1: the layers' own tangent kernel, 2N − 2 products to apply.
Conjugate gradients, like gradient descent, stay in the range of Jᵀ, so the implicit bias of the path so far
is kept; they only take about a tenth of the steps. Steps that fail to lower the loss by a third are undone
and tried again with Levenberg damping; after three such failures the descent takes over again."""

from __future__ import annotations

from torch import Tensor

from .deep_matrix_factorization_layers import LayerChain
from .deep_matrix_factorization_problem import Observations, square_norms

MAX_CONJUGATE_GRADIENTS = 100
MAX_FAILURES = 3
LEAST_PROGRESS = 0.7  # a step counts if the loss falls below this part of what it was


def polish(
    chain: LayerChain, problem: Observations, tolerance: float, max_steps: int
) -> tuple[int, list[float]]:
    """Lower the loss of *one* start to the tolerance, in place.

    Returns the steps taken, failures included, and the losses reached by those that counted; the last is
    above the tolerance if the steps ran out or failed three times in a row.
    """
    residual = problem.residual(chain.forward())
    losses = [float(problem.loss(residual))]
    damping, failures, steps = 0.0, 0, 0
    while losses[-1] > tolerance and failures < MAX_FAILURES and steps < max_steps:
        steps += 1
        move = gauss_newton_move(chain, problem, residual, damping, tolerance / losses[-1])
        _add(chain, move, -1)
        tried = problem.residual(chain.forward())
        loss = float(problem.loss(tried))
        if loss < LEAST_PROGRESS * losses[-1]:
            residual, damping, failures = tried, damping / 4, 0
            losses.append(loss)
        else:
            _add(chain, move, 1)
            residual = problem.residual(chain.forward())
            damping, failures = max(10 * damping, 1e-3), failures + 1
    return steps, losses


def gauss_newton_move(
    chain: LayerChain, problem: Observations, residual: Tensor, damping: float = 0.0, floor: float = 0.0
) -> list[Tensor]:
    """−ΔW_j for one start, each shaped as its layer; exact if conjugate gradients have steps enough.

    ``floor``: the part of the squared residual that may remain (it never needs to fall below 1/100 of it).
    """
    left, right = chain.left_products(), chain.right_products()
    rows = [a @ a.mT if a is not None else None for a in left]
    columns = [b.mT @ b if b is not None else None for b in right]

    def kernel(z: Tensor) -> Tensor:
        Z = problem.adjoint(z)
        total = None
        for row, column in zip(rows, columns, strict=True):
            term = Z if row is None else row @ Z
            term = term if column is None else term @ column
            total = term if total is None else total.add_(term)
        assert total is not None
        return problem.measure(total).add_(z, alpha=damping)

    Z = problem.adjoint(_conjugate_gradients(kernel, residual, max(0.01, floor / 4)))
    moves = []
    for a, b in zip(left, right, strict=True):
        move = Z if a is None else a.mT @ Z
        moves.append(move if b is None else move @ b.mT)
    return moves


def _conjugate_gradients(kernel, residual: Tensor, until: float) -> Tensor:  # type: ignore[no-untyped-def]
    solution, rest, direction = residual * 0, residual.clone(), residual.clone()
    first = square = float(square_norms(rest))
    for _ in range(MAX_CONJUGATE_GRADIENTS):
        image = kernel(direction)
        bend = float((direction * image).sum())
        if bend <= 0 or square <= until * first:
            break
        solution.add_(direction, alpha=square / bend)
        rest.sub_(image, alpha=square / bend)
        before, square = square, float(square_norms(rest))
        direction.mul_(square / before).add_(rest)
    return solution


def _add(chain: LayerChain, move: list[Tensor], sign: int) -> None:
    for layer, change in zip(chain.layers, move, strict=True):
        layer.add_(change, alpha=sign)
