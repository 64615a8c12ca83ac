"""Exponential learning rates: weight decay traded for a growing step, exactly.

**Statement** (Z. Li and S. Arora, *An exponential learning rate schedule for deep learning*, ICLR 2020).
On parameters whose scale does not change the loss (any layer followed by batch, layer or group norm), SGD
with momentum γ, weight decay λ and rate η passes through the same *functions* as SGD with the same momentum,
**no** weight decay and the rate

    η̃_t = η₀ · α^(−2t−1),     α the nonzero root of   x² − (1 + γ − λη)x + γ = 0,

given a matching momentum buffer. For rates, decays and momenta that vary from step to step, and from an
*empty* buffer, the exact statement is a recursion (one row per optimiser in ``exponential_lr_recursion``):

    c_t = (1−τ_t)λ_t + γ_t κ_t      α_{t+1} = 1 − η_t c_t      P_{t+1} = P_t / α_{t+1}
    κ_{t+1} = c_t / α_{t+1}         η̃_t = P_t P_{t+1} η_t      (P₀ = 1, κ₀ = 0)

The weights of the new run are P_t times those of the old: same function, same gradients' direction. Nothing
depends on the data, so rates can be written down beforehand.

**Assumptions.** (1) The loss is invariant to a positive scaling of the converted tensors *together*:
``scale_invariance_report`` decides which. (2) Everything else that feels the scale is scaled along: the eps
of each normalisation (P²), its running statistics (P and P², else training agrees and evaluation is wrong),
clipping thresholds (1/P), the noise of DP-SGD (1/P), tensors not converted (old rate *and* old decay).
``ExponentialEquivalentLR`` does all of it. (3) α > 0: λη ≤ (1−√γ)² when values are constant.

**Example.**

>>> schedule = exponential_lr_equivalent(lr=0.1, momentum=0.9, weight_decay=5e-4, drops={80: 0.1})
>>> rates = schedule.learning_rates(200)   # for plain SGD without weight decay
>>> round(float(rates[0] * (1 - 0.1 * 5e-4)), 12)   # first step: η₀/α₁ with α₁ = 1 − ηλ
0.1

Run ``python -m theory_modules.exponential_lr`` for a demonstration with figures.
"""

from __future__ import annotations

from collections.abc import Mapping

from .exponential_lr_phases import PhasedSchedule, growth_root, tapered_exponential
from .exponential_lr_recursion import (
    OPTIMIZERS,
    EquivalentStep,
    NoEquivalentScheduleError,
    check_hyperparameters,
    largest_decay,
    refuse_complex_roots,
)
from .exponential_lr_reverse import DecaySchedule, decay_equivalent
from .exponential_lr_schedule import EquivalentSchedule, Value
from .exponential_lr_scheduler import SGDW, ExponentialEquivalentLR, equivalent_parameter_groups
from .scale_invariance import NotScaleInvariantError, ScaleInvarianceReport, scale_invariance_report

__all__ = [
    "SGDW",
    "DecaySchedule",
    "EquivalentSchedule",
    "EquivalentStep",
    "ExponentialEquivalentLR",
    "NoEquivalentScheduleError",
    "NotScaleInvariantError",
    "PhasedSchedule",
    "ScaleInvarianceReport",
    "decay_equivalent",
    "equivalent_parameter_groups",
    "exponential_lr_equivalent",
    "growth_root",
    "largest_decay",
    "scale_invariance_report",
    "tapered_exponential",
]


def exponential_lr_equivalent(
    lr: Value,
    momentum: Value = 0.0,
    weight_decay: Value = 0.0,
    drops: Mapping[int, float] | None = None,
    *,
    dampening: float = 0.0,
    optimizer: str = "sgd",
) -> EquivalentSchedule:
    """The schedule without weight decay that visits the same functions (module docstring; ICLR 2020).

    Args:
        lr, momentum, weight_decay: the original run's η, γ, λ as in ``torch.optim.SGD``: numbers, or
            callables step → value for warmup, cosine, restarts, ...
        drops: step → factor; from that step on the rate is multiplied by it, factors accumulate.
        dampening: torch's τ; the first step ignores it, as torch does.
        optimizer: ``"sgd"``, ``"nesterov"`` (torch's ``nesterov=True``), ``"sgdw"`` (decoupled decay
            w ← (1−ηλ)w before the step) or ``"adamw"`` (``momentum`` unused).

    Raises:
        NoEquivalentScheduleError (a ValueError): numbers given for all three and λη beyond (1−√γ)² (complex
            roots) at the largest rate; callables are checked step by step (α > 0) when rates are asked for.
    """
    if optimizer not in OPTIMIZERS:
        raise NoEquivalentScheduleError(
            f"optimizer {optimizer!r} has no known equivalent\nhint: one of {', '.join(OPTIMIZERS)}"
        )
    for step, factor in (drops or {}).items():
        if step < 0 or not factor > 0:
            raise NoEquivalentScheduleError(
                f"drop {step}: {factor!r} needs a step >= 0 and a positive factor\n"
                "hint: e.g. drops={80: 0.1}"
            )
    schedule = EquivalentSchedule(
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        dampening=dampening,
        drops=tuple(sorted((drops or {}).items())),
        optimizer=optimizer,
    )
    if not (callable(lr) or callable(momentum) or callable(weight_decay)):
        for start in sorted({0, *(drops or {})}):
            now = schedule.original(start)
            check_hyperparameters(optimizer, start, now)
            refuse_complex_roots(optimizer, now)
    next(schedule.steps())  # the first values are checked here and now, callables included
    return schedule


if __name__ == "__main__":
    from .exponential_lr_demo import main

    main()
