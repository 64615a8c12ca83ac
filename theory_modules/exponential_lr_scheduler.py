"""The exponential learning rate as a torch scheduler that keeps *everything* the equivalence rests on.

    report = scale_invariance_report(model, sample)
    optimizer = SGD(equivalent_parameter_groups(model, report), lr=0.1, momentum=0.9, weight_decay=5e-4)
    scheduler = ExponentialEquivalentLR(optimizer, schedule, model, report)
    for inputs, targets in batches:
        optimizer.zero_grad(); loss(model(inputs), targets).backward()
        scheduler.clip_grad_norm_(1.0)          # instead of torch's, if the original run clips
        optimizer.step(); scheduler.step()      # once a *step*, not once an epoch

Build the optimiser exactly as for the original run. The scheduler then takes the weight decay off the
converted group, sets its rate and momentum, keeps the others at the original rate and decay, scales each
normalisation's eps and running statistics, Nesterov's buffer and Adam's moments and eps, and divides weights
by a power of two whenever they have grown by ``2**rescale_bits``: bit for bit the same run, without overflow.

Two things it cannot see: weight averages kept elsewhere (EMA, federated averaging) mix scales, so call
``restore_original_scale_`` before averaging; and a converted tensor must receive a gradient at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from .exponential_lr_recursion import EquivalentStep, NoEquivalentScheduleError
from .exponential_lr_schedule import EquivalentSchedule
from .normalization_scale import normalizations
from .scale_invariance import ScaleInvarianceReport


class SGDW(torch.optim.Optimizer):
    """SGD with decoupled decay: w ← (1 − ηλ)w − ηb, b ← γb + g (Loshchilov and Hutter, ICLR 2019)."""

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        direction = parameter.grad
        assert direction is not None
        if group["momentum"] != 0:
            buffer = state.get("momentum_buffer")
            if buffer is None:
                buffer = state["momentum_buffer"] = torch.clone(direction).detach()
            else:
                buffer.mul_(group["momentum"]).add_(direction)
            direction = buffer
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])


def equivalent_parameter_groups(model: nn.Module, report: ScaleInvarianceReport) -> list[dict[str, Any]]:
    """Two groups for the optimiser: the tensors ``report.convertible``, and all the other trainable ones.

    Raises NotScaleInvariantError where nothing converts.
    """
    names = set(report.require())
    trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    groups = [
        {"params": [value for name, value in trainable if name in names]},
        {"params": [value for name, value in trainable if name not in names]},
    ]
    return [group for group in groups if group["params"]]


class ExponentialEquivalentLR(LRScheduler):
    """Drives an optimiser along the run without weight decay (module docstring); step it once a step.

    Args:
        optimizer: torch's SGD or AdamW, or ``SGDW``, built with the *original* first values, each group
            wholly converted or wholly not (``equivalent_parameter_groups``).
        schedule: from ``exponential_lr_equivalent`` or ``tapered_exponential``.
        model, report: the network and its ``scale_invariance_report``.
        rescale_bits: the weights are divided by a power of two once P passes 2^rescale_bits. None: never.

    Groups that are not converted follow the schedule's rate (in proportion, if they began with another
    one) and decay (if they began with the schedule's decay; any other value, such as 0, stays as it is).

    Raises: NotScaleInvariantError (nothing converts), NoEquivalentScheduleError (optimiser and schedule
        differ, groups are mixed, a converted tensor is not being optimised, an impossible step).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: EquivalentSchedule,
        model: nn.Module,
        report: ScaleInvarianceReport,
        *,
        rescale_bits: int | None = 16,
    ) -> None:
        self.schedule = schedule
        self._converted = _converted_flags(optimizer, model, report.require())
        _check_optimizer(optimizer, schedule)
        self._first_groups = [dict(group, params=None) for group in optimizer.param_groups]
        self._layers = normalizations(model, report.degrees)
        self._rescale_bits = rescale_bits
        self._shift = 0  # powers of two taken out of the weights so far
        self._finished = False
        self._records = schedule.steps()
        self._now = next(self._records)
        self.optimizer = optimizer
        self._enter_step()
        super().__init__(optimizer)

    @property
    def scale(self) -> float:
        """P as it stands: the converted weights over the original run's, powers of two taken out."""
        return self._now.before.scale.value(self._shift)

    @property
    def current(self) -> EquivalentStep:
        """The record of the step about to be taken; its values are free of the powers of two."""
        return self._now

    def step(self, epoch: int | None = None) -> None:
        """Move to the next training step. Call after ``optimizer.step()``, once for each."""
        if epoch is not None or self._finished:
            raise NoEquivalentScheduleError(
                f"step({epoch if epoch is not None else ''}) cannot be taken: "
                + ("the original scale was restored" if self._finished else "the recursion has no epochs")
                + "\nhint: call step() once after every optimizer.step(); build a new one after restoring"
            )
        if not self._is_initial:
            self._leave_step()
            self._now = next(self._records)
            self._rescale()
            self._enter_step()
        super().step()

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rate of each group for the coming step."""
        degree = 1 if self.schedule.optimizer == "adamw" else 2
        converted = self._now.learning_rate.value(degree * self._shift)
        return [
            converted if flag else self._original_rate(first)
            for flag, first in zip(self._converted, self._first_groups, strict=True)
        ]

    def gradient_scales(self) -> list[float]:
        """Per group: gradient of the original run = this × the gradient found here."""
        return [self.scale if flag else 1.0 for flag in self._converted]

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        """Clip as ``torch.nn.utils.clip_grad_norm_`` does in the original run; returns the norm there.

        One global norm over all groups, in the original run's units: exact, heads included.
        """
        pairs = list(self._gradients())
        norms = [torch.linalg.vector_norm(gradient) * scale for gradient, scale in pairs]
        total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
        factor = torch.clamp(max_norm / (total + 1e-6), max=1.0)
        for gradient, _ in pairs:
            gradient.mul_(factor)
        return total

    @torch.no_grad()
    def clip_grad_value_(self, clip_value: float) -> None:
        """Clip each entry as ``torch.nn.utils.clip_grad_value_`` does in the original run."""
        for gradient, scale in self._gradients():
            gradient.clamp_(-clip_value / scale, clip_value / scale)

    def private_scaling(self, *, max_grad_norm: float, noise_multiplier: float) -> list[tuple[float, float]]:
        """DP-SGD now, per group: (clipping threshold, noise standard deviation); same accounting."""
        return [
            (max_grad_norm / scale, noise_multiplier * max_grad_norm / scale)
            for scale in self.gradient_scales()
        ]

    @torch.no_grad()
    def restore_original_scale_(self) -> None:
        """Turn model and optimiser into the original run's, to average, export or go on with weight decay.

        Weights, buffers, moments, eps, statistics and every group's options; this scheduler ends here.
        """
        scale, ray = self.scale, self._now.before
        buffer_unit = ray.sigma * self._now.buffer_factor  # the coming step's factor is in the buffer already
        for parameter in self._converted_parameters():
            parameter.div_(scale)
            state = self.optimizer.state.get(parameter, {})
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].mul_(scale / buffer_unit).add_(parameter, alpha=ray.kappa)
            _multiply_moments(state, scale)
        for layer in self._layers:
            layer.set_scale(1.0)
            layer.multiply_statistics(1 / scale)
        for group, first in zip(self.optimizer.param_groups, self._first_groups, strict=True):
            group.update({key: value for key, value in first.items() if key in ("eps", "momentum")})
            group["lr"] = self._original_rate(first)
            group["weight_decay"] = self._original_decay(first)
            if "momentum" in group:
                group["momentum"] = self._now.original.momentum
        self._finished = True

    def suspend_(self) -> None:
        """Put back the model's own eps and nothing else, as a run that is to be resumed leaves its model."""
        for layer in self._layers:
            layer.set_scale(1.0)

    def state_dict(self) -> dict[str, Any]:
        """Step and rescaling so far; the schedule itself is rebuilt by whoever resumes."""
        return {"last_epoch": self.last_epoch, "shift": self._shift, "step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume: build model, optimiser and scheduler anew, load the first two, then this.

        The model's original eps is read when the scheduler is built, so build it on a fresh model.
        """
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["step_count"]
        self._shift = state_dict["shift"]
        self._records = self.schedule.steps()
        self._now = next(islice(self._records, self.last_epoch, None))
        self._set_options()
        rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates

    # What happens to the state around a step. Each of these multiplies by numbers that depend on the
    # schedule only, or by a power of two.

    def _leave_step(self) -> None:
        """After the optimiser moved the weights from scale P to P'."""
        before, after = self._now.before.scale, self._now.after.scale
        ratio = math.ldexp(after.mantissa / before.mantissa, after.exponent - before.exponent)
        for layer in self._layers:
            layer.multiply_statistics(ratio)
        if self.schedule.optimizer == "adamw":
            for parameter in self._converted_parameters():
                _multiply_moments(self.optimizer.state.get(parameter, {}), 1 / ratio)

    @torch.no_grad()
    def _rescale(self) -> None:
        """(w, b, η̃) → (s·w, b/s, s²·η̃) with s a power of two: no bit of the run changes."""
        bits = self._now.before.scale.exponent - self._shift
        if self._rescale_bits is None or abs(bits) < self._rescale_bits:
            return
        self._shift += bits
        factor = math.ldexp(1.0, -bits)
        for parameter in self._converted_parameters():
            parameter.mul_(factor)
            state = self.optimizer.state.get(parameter, {})
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].div_(factor)
            _multiply_moments(state, 1 / factor)
        for layer in self._layers:
            layer.multiply_statistics(factor)

    @torch.no_grad()
    def _enter_step(self) -> None:
        """Options and buffers for the step ``self._now``."""
        self._set_options()
        factor, jump = self._now.buffer_factor, self._now.kappa_jump / self.scale / self.scale
        if factor == 1.0 and jump == 0.0:
            return
        for parameter in self._converted_parameters():
            state = self.optimizer.state[parameter]
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].mul_(factor)
            elif jump:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            if jump:
                state["momentum_buffer"].add_(parameter, alpha=jump)

    def _set_options(self) -> None:
        for layer in self._layers:
            layer.set_scale(self.scale)
        for group, first, converted in zip(
            self.optimizer.param_groups, self._first_groups, self._converted, strict=True
        ):
            if "momentum" in group:
                group["momentum"] = self._now.momentum if converted else self._now.original.momentum
            group["weight_decay"] = 0.0 if converted else self._original_decay(first)
            if converted and self.schedule.optimizer == "adamw":
                group["eps"] = first["eps"] / self.scale

    def _original_rate(self, first: dict[str, Any]) -> float:
        begun, now = self.schedule.original(0).learning_rate, self._now.original.learning_rate
        return now if first["lr"] == begun else float(first["lr"]) * now / begun

    def _original_decay(self, first: dict[str, Any]) -> float:
        begun = self.schedule.original(0).weight_decay
        return self._now.original.weight_decay if first["weight_decay"] == begun else first["weight_decay"]

    def _converted_parameters(self) -> Iterable[torch.Tensor]:
        for group, converted in zip(self.optimizer.param_groups, self._converted, strict=True):
            if converted:
                yield from group["params"]

    def _gradients(self) -> Iterable[tuple[torch.Tensor, float]]:
        for group, scale in zip(self.optimizer.param_groups, self.gradient_scales(), strict=True):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield parameter.grad, scale


def _multiply_moments(state: dict[str, Any], factor: float) -> None:
    """Adam's moments of gradients that become ``factor`` times larger; other states have none."""
    for name, power in (("exp_avg", 1), ("exp_avg_sq", 2), ("max_exp_avg_sq", 2)):
        if name in state:
            state[name].mul_(factor**power)


def _converted_flags(
    optimizer: torch.optim.Optimizer, model: nn.Module, names: tuple[str, ...]
) -> list[bool]:
    """Per group: converted? Refuses groups that mix, and converted tensors nobody optimises."""
    wanted = {id(value): name for name, value in model.named_parameters() if name in set(names)}
    flags = []
    for number, group in enumerate(optimizer.param_groups):
        inside = [id(parameter) in wanted for parameter in group["params"]]
        if any(inside) and not all(inside):
            raise NoEquivalentScheduleError(
                f"parameter group {number} mixes converted and other tensors, which need different rates\n"
                "hint: build the optimiser with equivalent_parameter_groups(model, report)"
            )
        flags.append(any(inside))
    present = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for key, name in wanted.items() if key not in present]
    if missing:
        raise NoEquivalentScheduleError(
            f"{missing[0]} converts but the optimiser does not hold it, so its scale would fall behind\n"
            "hint: build the optimiser with equivalent_parameter_groups(model, report)"
        )
    return flags


def _check_optimizer(optimizer: torch.optim.Optimizer, schedule: EquivalentSchedule) -> None:
    """The optimiser's class and first values are those the schedule was made from."""
    kinds = {"sgd": torch.optim.SGD, "nesterov": torch.optim.SGD, "sgdw": SGDW, "adamw": torch.optim.AdamW}
    kind, first = kinds[schedule.optimizer], schedule.original(0)
    if not isinstance(optimizer, kind):
        raise NoEquivalentScheduleError(
            f"the schedule is for {schedule.optimizer!r}, the optimiser is {type(optimizer).__name__}\n"
            f"hint: use {kind.__name__}, or exponential_lr_equivalent(..., optimizer=...) for this one"
        )
    expected = {"momentum": first.momentum, "dampening": first.dampening}
    if kind is torch.optim.SGD:
        expected["nesterov"] = schedule.optimizer == "nesterov"
    for number, group in enumerate(optimizer.param_groups):
        for key, value in expected.items():
            if key in group and group[key] != value:
                raise NoEquivalentScheduleError(
                    f"parameter group {number} has {key}={group[key]!r}, the schedule starts with {value!r}\n"
                    "hint: build the optimiser with the original run's values; the scheduler changes them"
                )


if __name__ == "__main__":
    from .exponential_lr_demo import main

    main()
