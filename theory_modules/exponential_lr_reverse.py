"""The way back: which rate and weight decay does a growing rate without decay amount to?

The recursion η̃ = P·P'·η, P' = P/(1 − ηc), c = λ + γκ, κ' = c·P'/P, read from right to left. Given the rates
η̃_t of a run *without* decay, one of the two unknowns is free:

* choose the decay λ_t:  with r = η̃/P²,  η = r/(1 + rc),  P' = P(1 + rc),  κ' = c(1 + rc).
  Always possible for λ ≥ 0, and well conditioned: *every* growing rate is some decaying rate with any decay.
* choose the rate η_t:   P' = η̃/(Pη),  c = (1 − P/P')/η,  λ = c − γκ.
  The decay comes out of a difference close to 1 − 1, so about 1e-9 of it is what double precision leaves;
  it turns negative where the given rate grows too slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .exponential_lr_recursion import NoEquivalentScheduleError
from .exponential_lr_schedule import EquivalentSchedule, Value, value_at

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class DecaySchedule:
    """A run with weight decay, as arrays over the steps: rate, decay, momentum, each (T,) float64."""

    learning_rates: FloatArray
    weight_decays: FloatArray
    momenta: FloatArray

    def __len__(self) -> int:
        return len(self.learning_rates)

    def equivalent(self) -> EquivalentSchedule:
        """Forward again: the schedule without decay of these values (defined for ``len(self)`` steps)."""
        return EquivalentSchedule(
            lr=lambda step: float(self.learning_rates[step]),
            weight_decay=lambda step: float(self.weight_decays[step]),
            momentum=lambda step: float(self.momenta[step]),
        )


def decay_equivalent(
    learning_rates: Sequence[float] | FloatArray,
    *,
    momentum: Value = 0.0,
    lr: Value | None = None,
    weight_decay: Value | None = None,
) -> DecaySchedule:
    """The SGD run with weight decay that equals SGD without decay at ``learning_rates`` (module docstring).

    Args:
        learning_rates: (T,) positive, the rates used without weight decay from an empty buffer.
        momentum: γ, a number or a callable step → value; the same in both runs.
        lr, weight_decay: exactly one of them, the original value to hold; the other is solved for.

    Raises: NoEquivalentScheduleError for empty, non-positive or non-finite rates, for both or neither choice,
        and where the chosen values leave the scale non-positive.
    """
    rates = np.asarray(learning_rates, dtype=np.float64)
    if rates.ndim != 1 or not len(rates) or not np.all(np.isfinite(rates)) or np.any(rates <= 0):
        raise NoEquivalentScheduleError(
            f"learning_rates of shape {rates.shape} must be one row of positive finite numbers\n"
            "hint: give one rate per training step"
        )
    if (lr is None) == (weight_decay is None):
        raise NoEquivalentScheduleError(
            "give exactly one of lr and weight_decay\n"
            "hint: weight_decay=5e-4 solves for the rate, lr=0.1 for the decay"
        )
    momenta = np.array([value_at(momentum, step) for step in range(len(rates))])
    if weight_decay is not None:
        decays = np.array([value_at(weight_decay, step) for step in range(len(rates))])
        return DecaySchedule(_solve_rates(rates, decays, momenta), decays, momenta)
    assert lr is not None
    chosen = np.array([value_at(lr, step) for step in range(len(rates))])
    return DecaySchedule(chosen, _solve_decays(rates, chosen, momenta), momenta)


def _solve_rates(rates: FloatArray, decays: FloatArray, momenta: FloatArray) -> FloatArray:
    solved = np.empty_like(rates)
    scale, kappa = 1.0, 0.0
    for step, (rate, lam, gamma) in enumerate(zip(rates, decays, momenta, strict=True)):
        c = lam + gamma * kappa
        ratio = rate / scale / scale
        grow = 1 + ratio * c  # 1/α
        if not grow > 0:
            raise NoEquivalentScheduleError(
                f"step {step}: weight decay {lam!r} leaves no positive scale\nhint: use a weight decay >= 0"
            )
        solved[step] = ratio / grow
        scale, kappa = scale * grow, c * grow if gamma or kappa else 0.0
    return solved


def _solve_decays(rates: FloatArray, chosen: FloatArray, momenta: FloatArray) -> FloatArray:
    if not np.all(chosen > 0):
        raise NoEquivalentScheduleError(
            f"lr = {float(chosen.min())!r} must be positive at every step\n"
            "hint: solve for the rate with weight_decay= instead"
        )
    solved = np.empty_like(rates)
    scale, kappa = 1.0, 0.0
    for step, (rate, eta, gamma) in enumerate(zip(rates, chosen, momenta, strict=True)):
        after = rate / (scale * eta)
        c = (1 - scale / after) / eta
        solved[step] = c - gamma * kappa
        scale, kappa = after, c * after / scale if gamma or kappa else 0.0
    return solved


def main() -> None:
    """Which decaying rate a rate grown by 1 % a step amounts to, and back again."""
    rates: FloatArray = 0.1 * np.power(1.01, np.arange(500.0))
    found = decay_equivalent(rates, momentum=0.9, weight_decay=5e-3)
    print("no decay, momentum 0.9, rate 0.1 growing by 1 % a step = weight decay 5e-3 at the rate")
    for step in (0, 10, 100, 499):
        print(f"  step {step:3d}: {found.learning_rates[step]:.6f} (grown {rates[step]:.4f})")
    back = found.equivalent().learning_rates(len(rates))
    print(f"there and back: {np.abs(back / rates - 1).max():.1e}")


if __name__ == "__main__":
    main()
