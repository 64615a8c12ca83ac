"""How far to go: step rules for gradient descent on the layers.

All of them move every layer along the plain gradient with *one* scalar step, so the path is gradient flow's
and only its speed changes; momentum, where used, averages past gradients with the same scalars.

==================  =====================================================================================
gradient-descent    h = lr
grouped-rmsprop     the published rule: s ← 0.99 s + 0.01 |∇|², |∇|² over *all* layers,
                    h = lr / (√(s/(1 − 0.99^t)) + 1e-4)
capped-movement     ours, default: v ← β v + (1 − β)∇, h = min(δ/|∇|, c/L) along v. Near the start gradients
                    are tiny and the move is δ a step, by default 0.0065 of the N-th root of the Frobenius
                    norm to expect of W. Near the end it is c/L with L the curvature at the minimum,
                    L = (2/m)|A|² N σ₁^(2−2/N), and heavy-ball momentum is stable for c < 2(1 + β)/(1 − β).
                    σ₁ comes from two power iterations every 20 steps.
==================  =====================================================================================
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .deep_matrix_factorization_layers import LayerChain
from .deep_matrix_factorization_problem import FactorizationInputError, Observations, square_norms

STEP_RULES = ("capped-movement", "grouped-rmsprop", "gradient-descent")


class GradientDescent:
    """h = lr, for all layers and starts."""

    def __init__(self, chain: LayerChain, problem: Observations, learning_rate: float | None) -> None:
        self.learning_rate = 0.01 if learning_rate is None else learning_rate
        self.num_steps = 0

    def step(self, chain: LayerChain) -> Tensor:
        """Move the layers along their gradients; returns the step sizes h, (S,)."""
        self.num_steps += 1
        h = self.sizes(chain)
        for layer, direction in zip(chain.layers, self.directions(chain), strict=True):
            layer.addcmul_(direction, h[:, None, None], value=-1)
        return h

    def sizes(self, chain: LayerChain) -> Tensor:
        layer = chain.layers[0]
        return layer.new_full((layer.shape[0],), self.learning_rate)

    def directions(self, chain: LayerChain) -> list[Tensor]:
        return chain.gradients

    def select(self, rows: list[int]) -> None:
        """Keep the memory of some of the starts."""

    def state(self) -> dict[str, Any]:
        return {"num_steps": self.num_steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.num_steps = state["num_steps"]


class GroupedRMSprop(GradientDescent):
    """One running mean square for all layers of a start."""

    DECAY, EPS = 0.99, 1e-4

    def __init__(self, chain: LayerChain, problem: Observations, learning_rate: float | None) -> None:
        super().__init__(chain, problem, 1e-3 if learning_rate is None else learning_rate)
        self.square = torch.zeros(problem.num_problems, dtype=chain.layers[0].dtype)

    def sizes(self, chain: LayerChain) -> Tensor:
        self.square.mul_(self.DECAY).add_(_square_norm(chain), alpha=1 - self.DECAY)
        unbiased = self.square / (1 - self.DECAY**self.num_steps)
        return self.learning_rate / (unbiased.sqrt() + self.EPS)

    def select(self, rows: list[int]) -> None:
        self.square = self.square[rows]

    def state(self) -> dict[str, Any]:
        return {"num_steps": self.num_steps, "square": self.square}

    def restore(self, state: dict[str, Any]) -> None:
        self.num_steps, self.square = state["num_steps"], state["square"]


class CappedMovement(GradientDescent):
    """Momentum with a cap on the move and a cap from the curvature at the minimum."""

    MOVE, MOMENTUM, CURVATURE_STEPS = 0.0065, 0.8, 5.0

    def __init__(self, chain: LayerChain, problem: Observations, learning_rate: float | None) -> None:
        super().__init__(chain, problem, learning_rate)
        self.curvature = problem.curvature()
        size = problem.typical_norm().clamp(min=1e-30) ** (1 / chain.depth)
        self.move = self.MOVE * size if learning_rate is None else torch.full_like(size, learning_rate)
        self.velocity = [torch.zeros_like(w) for w in chain.layers]
        generator = torch.Generator().manual_seed(0)  # any direction does; it is refined for ever
        vector = torch.randn(problem.shape[1], 1, generator=generator, dtype=torch.float64)
        self.vector = vector.to(chain.layers[0].dtype).expand(problem.num_problems, -1, -1).clone()
        self.largest = torch.zeros(problem.num_problems, dtype=self.vector.dtype)

    def sizes(self, chain: LayerChain) -> Tensor:
        if self.num_steps % 20 == 1:
            self._power_iterations(chain)
        power = 2 - 2 / chain.depth
        bend = self.curvature * chain.depth * self.largest.clamp(min=1e-3) ** power
        return torch.minimum(self.move / _square_norm(chain).sqrt(), self.CURVATURE_STEPS / bend)

    def directions(self, chain: LayerChain) -> list[Tensor]:
        for velocity, gradient in zip(self.velocity, chain.gradients, strict=True):
            velocity.lerp_(gradient, 1 - self.MOMENTUM)
        return self.velocity

    def _power_iterations(self, chain: LayerChain) -> None:
        for _ in range(2):
            image = chain.product @ self.vector
            back = chain.product.mT @ image
            length = square_norms(back).sqrt()
            self.largest = length / square_norms(image).sqrt().clamp(min=1e-30)
            self.vector = back / length.clamp(min=1e-30)[:, None, None]

    def select(self, rows: list[int]) -> None:
        self.velocity = [v[rows] for v in self.velocity]
        self.move = self.move[rows]
        self.vector, self.largest, self.curvature = (
            self.vector[rows],
            self.largest[rows],
            self.curvature[rows],
        )

    def state(self) -> dict[str, Any]:
        names = ("num_steps", "velocity", "vector", "largest", "curvature", "move")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def step_rule(
    name: str, chain: LayerChain, problem: Observations, learning_rate: float | None
) -> GradientDescent:
    """A rule by its name in the table; ``learning_rate`` is lr, or δ, or None for the rule's own."""
    kinds = {
        "capped-movement": CappedMovement,
        "grouped-rmsprop": GroupedRMSprop,
        "gradient-descent": GradientDescent,
    }
    if name not in kinds:
        raise FactorizationInputError(f"step_rule is {name!r}; choose one of {', '.join(STEP_RULES)}")
    return kinds[name](chain, problem, learning_rate)


def _square_norm(chain: LayerChain) -> Tensor:
    """(S,) squared norm of the gradient over all layers."""
    total = square_norms(chain.gradients[0])
    for gradient in chain.gradients[1:]:
        total = total + square_norms(gradient)
    return total
