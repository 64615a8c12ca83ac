"""Constant growth within each phase: the closed form η₀α^(−2t−1) and its tapered relative, TEXP.

While rate, momentum and decay stay constant the recursion's α settles at the larger root α* of
x² − (1 + γ − λη)x + γ = 0. Start it *there* and every step grows the rate by exactly α*⁻². The price is the
momentum buffer, which has to be put on the ray b = κ*·w first:

    b̃₀ = −κ*·w₀,      κ* = (1 − α*)/(α*·η)        (torch's empty buffer costs 25 % later on)

A drop η → η' starts a new phase with another root (TEXP, Li and Arora): the rate continues with the ratio
(η'/η)/(α'*·α*) and the buffer moves to the new ray, b̃ ← b̃ + (κ*_old − κ*_new)·w̃/P². That jump is of second
order, (η − η')λ²/(1−γ)³, which is why published TEXP works without it; with it the phases are exact. Both
roots are: the smaller one grows by about 1/γ a step. The recursion of ``exponential_lr`` needs no jump.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count

from .exponential_lr_recursion import (
    EquivalentStep,
    Hyperparameters,
    NoEquivalentScheduleError,
    Ray,
    check_hyperparameters,
    refuse_complex_roots,
)
from .exponential_lr_schedule import EquivalentSchedule


def growth_root(lr: float, momentum: float, weight_decay: float, *, smaller: bool = False) -> float:
    """α*: a root of x² − (1 + γ − λη)x + γ; the rate grows by α*⁻² a step (Li and Arora, main theorem).

    Without momentum it is the nonzero root 1 − λη. Raises NoEquivalentScheduleError for complex roots
    (λη > (1−√γ)²), and for the smaller root without momentum, which is 0.
    """
    now = Hyperparameters(lr, momentum, weight_decay)
    check_hyperparameters("sgd", 0, now)
    refuse_complex_roots("sgd", now)
    total = 1 + momentum - weight_decay * lr
    larger = (total + math.sqrt(max(0.0, total * total - 4 * momentum))) / 2
    if smaller and momentum == 0:
        raise NoEquivalentScheduleError(
            "without momentum the smaller root is 0\nhint: use the larger root, 1 - weight_decay*lr"
        )
    return momentum / larger if smaller else larger


@dataclass(frozen=True, kw_only=True)
class PhasedSchedule(EquivalentSchedule):
    """Exactly exponential growth in every phase; ``steps`` carry the buffer's jump between phases."""

    smaller_root: bool = False

    def steps(self) -> Iterator[EquivalentStep]:
        """Endless; ``kappa_jump`` is non-zero at the first step of each phase."""
        ray, phase, alpha = Ray(), None, 1.0
        for index in count():
            now, jump = self.original(index), 0.0
            if now != phase:
                phase = now
                alpha = growth_root(
                    now.learning_rate, now.momentum, now.weight_decay, smaller=self.smaller_root
                )
                kappa = (1 - alpha) / (alpha * now.learning_rate) if now.momentum else 0.0
                jump = ray.kappa - kappa
                ray = replace(ray, kappa=kappa, has_buffer=now.momentum > 0)
            after = replace(ray, scale=ray.scale.over(alpha))
            rate = ray.scale.times(after.scale).times(now.learning_rate)
            yield EquivalentStep(index, ray, after, rate, now.momentum, kappa_jump=jump, original=now)
            ray = after

    def buffer_jumps(self, num_steps: int) -> dict[int, float]:
        """step → coefficient a of b̃ ← b̃ + a·w̃ to apply just before it; step 0 is the preset −κ*."""
        return {
            step.index: step.kappa_jump / step.before.scale.value() / step.before.scale.value()
            for step in self._first(num_steps)
            if step.kappa_jump
        }


def tapered_exponential(
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    drops: Mapping[int, float] | None = None,
    *,
    smaller_root: bool = False,
) -> PhasedSchedule:
    """TEXP: one constant growth rate a phase; without ``drops`` the closed form η₀α^(−2t−1).

    Args: as ``exponential_lr_equivalent``, numbers only, SGD. ``learning_rates`` are exact only together
    with ``buffer_jumps`` (``ExponentialEquivalentLR`` applies them).
    Raises: NoEquivalentScheduleError for complex roots in any phase, or a rate that is not positive.
    """
    if not lr > 0:
        raise NoEquivalentScheduleError(f"lr = {lr!r} must be positive\nhint: e.g. lr=0.1")
    for step, factor in (drops or {}).items():
        if step < 0 or not factor > 0:
            raise NoEquivalentScheduleError(
                f"drop {step}: {factor!r} needs a step >= 0 and a positive factor\n"
                "hint: e.g. drops={80: 0.1}"
            )
    schedule = PhasedSchedule(
        lr=float(lr),
        momentum=float(momentum),
        weight_decay=float(weight_decay),
        drops=tuple(sorted((drops or {}).items())),
        smaller_root=smaller_root,
    )
    for start in sorted({0, *(drops or {})}):
        now = schedule.original(start)
        growth_root(now.learning_rate, now.momentum, now.weight_decay, smaller=smaller_root)
    return schedule


def main() -> None:
    """The published growth, and a tapered schedule's rates around its drops."""
    growth = growth_root(0.1, 0.9, 5e-4) ** -2
    print("PreResNet32, CIFAR-10, rate 0.1, momentum 0.9, weight decay 5e-4, 391 steps an epoch")
    print(f"growth an epoch: {growth**391:.7f} (published 1.481)")
    schedule = tapered_exponential(
        lr=0.1, momentum=0.9, weight_decay=5e-4, drops={80 * 391: 0.1, 120 * 391: 0.1}
    )
    rates = schedule.log2_learning_rates(160 * 391) * math.log10(2)
    for epoch in (0, 40, 79, 80, 119, 120, 159):
        print(f"epoch {epoch:3d}: rate 10^{rates[epoch * 391]:.2f}")


if __name__ == "__main__":
    main()
