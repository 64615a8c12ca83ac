"""A schedule with weight decay and, step by step, the run without decay that computes the same functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from .exponential_lr_recursion import (
    EquivalentStep,
    Hyperparameters,
    NoEquivalentScheduleError,
    Ray,
    advance,
)

Value = float | Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class EquivalentSchedule:
    """A training schedule with weight decay, and the run without decay that computes the same functions.

    Built by ``exponential_lr_equivalent``. ``first_step`` is the original run's step at which it starts
    with P = 1, κ = 0: any moment will do, for at P = 1 both runs have the same weights and buffer.
    """

    lr: Value
    momentum: Value = 0.0
    weight_decay: Value = 0.0
    dampening: float = 0.0
    drops: tuple[tuple[int, float], ...] = ()
    optimizer: str = "sgd"
    first_step: int = 0

    def original(self, step: int) -> Hyperparameters:
        """The original run's η, γ, λ, τ at a step counted from ``first_step``."""
        index = step + self.first_step
        rate = value_at(self.lr, index)
        for start, factor in self.drops:
            if index >= start:
                rate *= factor
        return Hyperparameters(
            rate, value_at(self.momentum, index), value_at(self.weight_decay, index), self.dampening
        )

    def steps(self) -> Iterator[EquivalentStep]:
        """Endless: one record a step. Raises NoEquivalentScheduleError at the first impossible one."""
        ray = Ray()
        for index in count():
            step = advance(self.optimizer, ray, index, self.original(index))
            yield step
            ray = step.after

    def starting_at(self, step: int) -> EquivalentSchedule:
        """The same original schedule from its step ``step`` on, with P = 1 there (e.g. one round)."""
        return replace(self, first_step=self.first_step + step)

    def learning_rates(self, num_steps: int) -> NDArray[np.float64]:
        """(num_steps,) float64: the rate without weight decay, from an empty momentum buffer.

        Raises NoEquivalentScheduleError where a rate passes float64's range (about 1.8e308).
        """
        return np.array([step.learning_rate.value() for step in self._first(num_steps)])

    def log2_learning_rates(self, num_steps: int) -> NDArray[np.float64]:
        """(num_steps,) float64: log2 of the rates; never overflows (−inf where the rate is 0)."""
        return np.array([step.learning_rate.log2() for step in self._first(num_steps)])

    def scales(self, num_steps: int) -> NDArray[np.float64]:
        """(num_steps + 1,) float64: P_t, the norm of the new weights over that of the old."""
        return np.array([1.0] + [step.after.scale.value() for step in self._first(num_steps)])

    def momenta(self, num_steps: int) -> NDArray[np.float64]:
        """(num_steps,) float64: the momentum without weight decay (only nesterov and sgdw change it)."""
        return np.array([step.momentum for step in self._first(num_steps)])

    def momenta_inside_buffer(self, num_steps: int) -> NDArray[np.float64]:
        """(num_steps,) float64: momentum for frameworks that keep the rate *inside* the buffer.

        There u ← γ'u + η̃g, w ← w − u, and γ'_t = γ_t η̃_t/η̃_{t−1}; keeping γ would be another run.
        """
        if self.optimizer != "sgd":
            raise NoEquivalentScheduleError(
                f"the form with the rate inside the buffer is worked out for 'sgd', not {self.optimizer!r}\n"
                "hint: use torch's form, with the rate outside"
            )
        rates = self.log2_learning_rates(num_steps)
        ratio = np.ones(num_steps)
        ratio[1:] = np.exp2(rates[1:] - rates[:-1])
        return self.momenta(num_steps) * ratio

    def private_scaling(
        self, step: int, *, max_grad_norm: float, noise_multiplier: float
    ) -> tuple[float, float]:
        """DP-SGD at one step: (clipping threshold, noise standard deviation) for the converted tensors.

        C/P_t and noise_multiplier·C/P_t. P_t is a function of the schedule alone and the noise multiplier
        is the same, so the privacy accounting is that of the original run. Clip per layer, or convert all.
        """
        scale = next(islice(self.steps(), step, None)).before.scale.value()
        return max_grad_norm / scale, noise_multiplier * max_grad_norm / scale

    def _first(self, num_steps: int) -> Iterator[EquivalentStep]:
        if num_steps < 0:
            raise NoEquivalentScheduleError(
                f"num_steps = {num_steps} is negative\nhint: ask for 0 steps or more"
            )
        return islice(self.steps(), num_steps)


def value_at(value: Value, step: int) -> float:
    """A number, or what a callable says at ``step``."""
    return float(value(step) if callable(value) else value)
