"""One training step, rewritten without weight decay: the recursions behind the equivalence.

Take parameters w on which the loss is scale invariant, L(c·w) = L(w) for c > 0, so that the gradient
obeys g(c·w) = g(w)/c. Leave the gradient out of an optimiser and a linear map on (w, b) remains, b being
the momentum buffer; weight decay makes it contract. Follow the ray b = κ·w under that map: one step
multiplies w by α, and κ moves on. The run *without* decay lives in co-moving coordinates,

    w̃ = P·w,      b̃ = (σ/P)·(b − κ·w),      P ← P/α,      P₀ = 1, κ₀ = 0, σ₀ = 1,

and asking that one plain step keeps this form fixes its rate η̃, momentum γ̃ and, for Nesterov, one factor β
on its buffer. Nothing here depends on data. With rate η, momentum γ, decay λ, dampening τ at the step:

=========  ==========================================  ============  =====================================
optimiser  ray                                         η̃             rest
=========  ==========================================  ============  =====================================
sgd        c = (1−τ)λ + γκ, α = 1 − ηc                 P·P'·η        γ̃ = γ
nesterov   c = λ + γκ, α = 1 − η(λ + γc)               P²·η/(1−ηλ)   u = 1 + κ'η(1+γ), γ̃ = γu, σ' = 1/(αu),
                                                                     β = (1 + κ'ηγ)/(u²σ)
sgdw       κ = 0, α = 1 − ηλ                           P·P'·η        γ̃ = γ/σ, σ' = 1/α
adamw      κ = 0, α = 1 − ηλ                           P'·η          ε̃ = ε/P, moments × α and α² after it
=========  ==========================================  ============  =====================================

with κ' = c/α and P' = P/α. The first row is the exponential learning rate of Li and Arora (ICLR 2020) for
any time-varying η, γ, λ, τ from torch's empty buffer; at constant values α tends to the larger root of
x² − (1+γ−λη)x + γ. The other rows are the same argument for other optimisers. A step with α ≤ 0 would need
a negative scale, on which networks are *not* invariant: it is refused.

Scales are kept as mantissa · 2^exponent, so a run may be rescaled by powers of two at any time without
changing a bit of it, and no schedule is too long to write down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

OPTIMIZERS = ("sgd", "nesterov", "sgdw", "adamw")


class NoEquivalentScheduleError(ValueError):
    """No equivalent run exists, or the setting asked for is outside what was proved."""


@dataclass(frozen=True, slots=True)
class BinaryFloat:
    """A positive (or zero) number mantissa · 2^exponent whose exponent cannot overflow."""

    mantissa: float
    exponent: int = 0

    @classmethod
    def of(cls, value: float, exponent: int = 0) -> BinaryFloat:
        mantissa, own = math.frexp(value)
        return cls(mantissa, own + exponent if mantissa else 0)

    def times(self, other: BinaryFloat | float) -> BinaryFloat:
        if isinstance(other, BinaryFloat):
            return BinaryFloat.of(self.mantissa * other.mantissa, self.exponent + other.exponent)
        return BinaryFloat.of(self.mantissa * other, self.exponent)

    def over(self, value: float) -> BinaryFloat:
        return BinaryFloat.of(self.mantissa / value, self.exponent)

    def value(self, shift: int = 0) -> float:
        """The number divided by 2^shift, as a float; refused where it would overflow."""
        if self.mantissa and self.exponent - shift > 1024:
            raise NoEquivalentScheduleError(
                f"the number 2^{self.log2():.1f} does not fit into a float64\n"
                "hint: use log2_learning_rates(), or ExponentialEquivalentLR, which rescales by powers of two"
            )
        return math.ldexp(self.mantissa, self.exponent - shift)

    def log2(self) -> float:
        return math.log2(self.mantissa) + self.exponent if self.mantissa else -math.inf


ONE = BinaryFloat.of(1.0)


@dataclass(frozen=True, slots=True)
class Ray:
    """Where the run without decay stands: w̃ = P·w and b̃ = (σ/P)·(b − κ·w)."""

    scale: BinaryFloat = ONE  # P
    kappa: float = 0.0
    sigma: float = 1.0
    has_buffer: bool = False


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The original optimiser's values at one step: η, γ, λ, τ."""

    learning_rate: float
    momentum: float
    weight_decay: float
    dampening: float = 0.0


@dataclass(frozen=True, slots=True)
class EquivalentStep:
    """What the run without weight decay must use at one step, and where it starts and ends."""

    index: int
    before: Ray
    after: Ray
    learning_rate: BinaryFloat  # η̃
    momentum: float  # γ̃
    buffer_factor: float = 1.0  # β: multiplies the momentum buffer before this step
    kappa_jump: float = 0.0  # before this step b̃ += (kappa_jump/P²)·w̃; only constant-growth phases need it
    original: Hyperparameters = Hyperparameters(0.0, 0.0, 0.0)


def advance(optimizer: str, ray: Ray, index: int, now: Hyperparameters) -> EquivalentStep:
    """One step of the table above. Raises NoEquivalentScheduleError where α ≤ 0."""
    check_hyperparameters(optimizer, index, now)
    return _RULES[optimizer](ray, index, now)


def check_hyperparameters(optimizer: str, index: int, now: Hyperparameters) -> None:
    """Refuse values no optimiser takes: NaN, infinite, negative rates, momentum outside [0, 1)."""
    values = (now.learning_rate, now.momentum, now.weight_decay, now.dampening)
    if not all(math.isfinite(value) for value in values) or now.learning_rate < 0:
        raise NoEquivalentScheduleError(
            f"step {index}: learning rate {now.learning_rate!r}, momentum {now.momentum!r}, weight decay "
            f"{now.weight_decay!r} and dampening {now.dampening!r} must be finite and the rate not negative\n"
            "hint: look at the schedule's value at this step"
        )
    if not 0 <= now.momentum < 1:
        raise NoEquivalentScheduleError(
            f"step {index}: momentum {now.momentum!r} is outside [0, 1)\n"
            "hint: give the optimiser's momentum, e.g. 0.9"
        )
    if optimizer == "nesterov" and (now.momentum == 0 or now.dampening != 0):
        raise NoEquivalentScheduleError(
            f"step {index}: Nesterov's form needs a positive momentum and no dampening, "
            f"got {now.momentum!r} and {now.dampening!r}\nhint: use optimizer='sgd' for plain steps"
        )


def largest_decay(optimizer: str, momentum: float) -> float:
    """The bound on λη (times 1−τ) up to which constant values have a real growth rate for ever.

    sgd: (1−√γ)². nesterov: ((1−γ)/(1+γ))². sgdw, adamw: 1 (not attained).
    Beyond it the ray turns like a complex pair of roots, and sooner or later α ≤ 0.
    """
    if optimizer == "sgd":
        return (1 - math.sqrt(momentum)) ** 2
    if optimizer == "nesterov":
        return ((1 - momentum) / (1 + momentum)) ** 2
    return 1.0


def refuse_complex_roots(optimizer: str, now: Hyperparameters) -> None:
    """Raise where these values, held constant, have no positive real α."""
    bound = largest_decay(optimizer, now.momentum)
    product = now.learning_rate * now.weight_decay * (1 - now.dampening)
    attained = now.momentum > 0 and optimizer in ("sgd", "nesterov")  # there the bound is a double root
    # One part in 1e12 covers the rounding of the square root.
    if product <= bound * (1 + 1e-12) if attained else product < bound:
        return
    condition, reason = {
        "sgd": (
            "(1 - sqrt(momentum))**2",
            "x^2 - (1 + momentum - weight_decay*lr) x + momentum has complex roots",
        ),
        "nesterov": (
            "((1 - momentum)/(1 + momentum))**2",
            "x^2 - (1 + momentum)(1 - weight_decay*lr) x + momentum (1 - weight_decay*lr) has complex roots",
        ),
    }.get(optimizer, ("1", "weight decay alone turns the weights around"))
    if not now.momentum:
        reason = "1 - weight_decay*lr is no positive root"
    raise NoEquivalentScheduleError(
        f"weight decay x learning rate = {product:.6g} is beyond {condition} = {bound:.6g}: "
        f"{reason}, so no exponential rate is equivalent\n"
        f"hint: lower weight_decay or lr until their product is below {bound:.6g}, or lower the momentum"
    )


def _positive(alpha: float, optimizer: str, index: int, now: Hyperparameters) -> float:
    if alpha > 0:
        return alpha
    bound = largest_decay(optimizer, now.momentum)
    raise NoEquivalentScheduleError(
        f"step {index}: weight decay would turn the weights around (alpha = {alpha:.6g} <= 0), "
        "and networks are invariant to positive scales only\n"
        f"hint: keep weight_decay x lr at or below {bound:.6g} for momentum {now.momentum}, "
        f"here it is {now.learning_rate * now.weight_decay:.6g}"
    )


def _sgd(ray: Ray, index: int, now: Hyperparameters) -> EquivalentStep:
    eta, gamma, lam = now.learning_rate, now.momentum, now.weight_decay
    _refuse_paused_momentum(ray, index, gamma)
    # torch fills an empty buffer with the whole gradient, without dampening.
    dampening = now.dampening if ray.has_buffer else 0.0
    c = (1 - dampening) * lam + gamma * ray.kappa
    alpha = _positive(1 - eta * c, "sgd", index, now)
    buffered = ray.has_buffer or gamma > 0
    after = Ray(ray.scale.over(alpha), c / alpha if buffered else 0.0, 1.0, buffered)
    return EquivalentStep(index, ray, after, _rate(ray, after, eta), gamma, original=now)


def _nesterov(ray: Ray, index: int, now: Hyperparameters) -> EquivalentStep:
    eta, gamma, lam = now.learning_rate, now.momentum, now.weight_decay
    c = lam + gamma * ray.kappa
    alpha = _positive(1 - eta * (lam + gamma * c), "nesterov", index, now)
    kappa = c / alpha
    u = 1 + kappa * eta * (1 + gamma)
    factor = (1 + kappa * eta * gamma) / (u * u * ray.sigma)
    after = Ray(ray.scale.over(alpha), kappa, 1 / (alpha * u), True)
    rate = ray.scale.times(ray.scale).times(eta).over(1 - eta * lam)
    return EquivalentStep(index, ray, after, rate, gamma * u, factor, original=now)


def _sgdw(ray: Ray, index: int, now: Hyperparameters) -> EquivalentStep:
    eta, gamma = now.learning_rate, now.momentum
    _refuse_paused_momentum(ray, index, gamma)
    alpha = _positive(1 - eta * now.weight_decay, "sgdw", index, now)
    after = Ray(ray.scale.over(alpha), 0.0, 1 / alpha, ray.has_buffer or gamma > 0)
    return EquivalentStep(index, ray, after, _rate(ray, after, eta), gamma / ray.sigma, original=now)


def _adamw(ray: Ray, index: int, now: Hyperparameters) -> EquivalentStep:
    alpha = _positive(1 - now.learning_rate * now.weight_decay, "adamw", index, now)
    after = Ray(ray.scale.over(alpha))
    return EquivalentStep(
        index, ray, after, after.scale.times(now.learning_rate), now.momentum, 1.0, original=now
    )


def _rate(ray: Ray, after: Ray, eta: float) -> BinaryFloat:
    return ray.scale.times(after.scale).times(eta)


def _refuse_paused_momentum(ray: Ray, index: int, gamma: float) -> None:
    if ray.has_buffer and gamma == 0:
        raise NoEquivalentScheduleError(
            f"step {index}: momentum drops to exactly 0 after a positive value; torch then leaves its buffer "
            "standing, which no scaled run reproduces\n"
            "hint: use a tiny positive momentum such as 1e-30 instead of 0"
        )


_RULES: dict[str, Callable[[Ray, int, Hyperparameters], EquivalentStep]] = {
    "sgd": _sgd,
    "nesterov": _nesterov,
    "sgdw": _sgdw,
    "adamw": _adamw,
}


def main() -> None:
    """What each optimiser's run without decay does in its first steps."""
    now = Hyperparameters(0.1, 0.9, 5e-3)
    print("rate 0.1, momentum 0.9, weight decay 5e-3, constant; the run without weight decay")
    for optimizer in OPTIMIZERS:
        print(f"{optimizer}: weight decay x rate at most {largest_decay(optimizer, now.momentum):.6g}")
        ray = Ray()
        for index in range(4):
            step = advance(optimizer, ray, index, now)
            print(
                f"  step {index}: rate {step.learning_rate.value():.8f}, momentum {step.momentum:.8f}, "
                f"buffer x {step.buffer_factor:.8f}, then weights x {step.after.scale.value():.8f}"
            )
            ray = step.after


if __name__ == "__main__":
    main()
