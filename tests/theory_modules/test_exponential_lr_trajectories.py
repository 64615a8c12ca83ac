"""The theorems as experiments: two runs side by side, compared function by function.

The reference run sets its optimiser's options by hand, from callables written here, and uses torch's own
optimisers, clipping and (for DP-SGD) per-sample gradients. The other run has no weight decay and is driven by
``ExponentialEquivalentLR``. Everything is float64; differences are relative to
the largest output and taken over *every* step in training mode and every tenth in evaluation mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from theory_modules.exponential_lr import (
    SGDW,
    EquivalentSchedule,
    ExponentialEquivalentLR,
    ScaleInvarianceReport,
    equivalent_parameter_groups,
    exponential_lr_equivalent,
    scale_invariance_report,
    tapered_exponential,
)

STEPS, AGREE = 200, 1e-10
FEATURES, CLASSES = 12, 4


class Residual(nn.Module):
    """Pre-activation residual net on 6 × 6 images, with a bare shortcut convolution (stays behind)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in range(5))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(4))
        self.shortcut = nn.Conv2d(width, width, 1, bias=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x.reshape(len(x), 1, 3, 4))
        for block, shortcut in enumerate((nn.Identity(), self.shortcut)):
            inner = self.convs[2 * block](functional.relu(self.norms[2 * block](x)))
            x = shortcut(x) + self.convs[2 * block + 1](functional.relu(self.norms[2 * block + 1](inner)))
        return self.head(functional.relu(self.norms[4](x)).mean((2, 3)))


def mlp(norm: Callable[[int], nn.Module], *, bias: bool = True, width: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(FEATURES, width, bias=bias),
        norm(width),
        nn.ReLU(),
        nn.Linear(width, width, bias=bias),
        norm(width),
        nn.ReLU(),
        nn.Linear(width, CLASSES),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: mlp(nn.BatchNorm1d),
    "batch norm, joint scale and shift": lambda: mlp(nn.BatchNorm1d, bias=False),
    "layer norm": lambda: mlp(nn.LayerNorm),
    "group norm": lambda: mlp(lambda width: nn.GroupNorm(2, width)),
    "residual": Residual,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(7)
    return NETS[name]().double()


@cache
def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """32 rows of the step's own; the label is which of four directions fits best, so it can be learned."""
    generator = torch.Generator().manual_seed(1000 + step)
    inputs = torch.randn(32, FEATURES, generator=generator, dtype=torch.float64)
    targets = (inputs[:, :CLASSES] + inputs[:, CLASSES : 2 * CLASSES].abs()).argmax(1)
    return inputs, targets


Setting = Callable[[int], float]


@dataclass(frozen=True)
class Case:
    """One original run: the optimiser's values as functions of the step."""

    lr: Setting = lambda step: 0.1
    momentum: Setting = lambda step: 0.9
    weight_decay: Setting = lambda step: 5e-3
    dampening: float = 0.0
    optimizer: str = "sgd"

    def schedule(self) -> EquivalentSchedule:
        return exponential_lr_equivalent(
            self.lr, self.momentum, self.weight_decay, dampening=self.dampening, optimizer=self.optimizer
        )

    def build(self, groups: Any) -> torch.optim.Optimizer:
        lr, decay, momentum = self.lr(0), self.weight_decay(0), self.momentum(0)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=lr, weight_decay=decay)
        if self.optimizer == "sgdw":
            return SGDW(groups, lr=lr, momentum=momentum, weight_decay=decay)
        return torch.optim.SGD(
            groups,
            lr=lr,
            momentum=momentum,
            weight_decay=decay,
            dampening=self.dampening,
            nesterov=self.optimizer == "nesterov",
        )


@dataclass
class Trace:
    training: list[torch.Tensor]
    evaluation: list[torch.Tensor]

    def distance(self, other: Trace) -> float:
        pairs = [
            *zip(self.training, other.training, strict=True),
            *zip(self.evaluation, other.evaluation, strict=True),
        ]
        return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def one_step(model: nn.Module, step: int) -> torch.Tensor:
    inputs, targets = batch(step)
    model.zero_grad(set_to_none=True)
    outputs = model(inputs)
    functional.cross_entropy(outputs, targets).backward()
    return outputs.detach()


def evaluate(model: nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        outputs = model(batch(-1)[0])
    model.train()
    return outputs


def original_run(
    case: Case,
    net: str,
    *,
    steps: int = STEPS,
    clip: Callable[[list[torch.Tensor]], object] | None = None,
) -> Trace:
    model = build(net)
    if case.optimizer == "sgdw":
        return decoupled_by_hand(case, model, steps)
    optimizer, trace = case.build(model.parameters()), Trace([], [])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = case.lr(step), case.weight_decay(step)
            if "momentum" in group:
                group["momentum"] = case.momentum(step)
        trace.training.append(one_step(model, step))
        if clip:
            clip(list(model.parameters()))
        optimizer.step()
        if step % 10 == 9:
            trace.evaluation.append(evaluate(model))
    return trace


def decoupled_by_hand(case: Case, model: nn.Module, steps: int) -> Trace:
    """SGDW as three lines of arithmetic, independent of the optimiser class under test."""
    buffers = [torch.zeros_like(parameter) for parameter in model.parameters()]
    trace = Trace([], [])
    for step in range(steps):
        trace.training.append(one_step(model, step))
        with torch.no_grad():
            for buffer, parameter in zip(buffers, model.parameters(), strict=True):
                buffer.mul_(case.momentum(step)).add_(parameter.grad)
                parameter.mul_(1 - case.lr(step) * case.weight_decay(step)).sub_(case.lr(step) * buffer)
        if step % 10 == 9:
            trace.evaluation.append(evaluate(model))
    return trace


@dataclass
class Converted:
    """The run without weight decay, one step at a time."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: ExponentialEquivalentLR

    def run(
        self, start: int, stop: int, *, clip: Callable[[ExponentialEquivalentLR], object] | None = None
    ) -> Trace:
        trace = Trace([], [])
        for step in range(start, stop):
            trace.training.append(one_step(self.model, step))
            if clip:
                clip(self.scheduler)
            self.optimizer.step()
            self.scheduler.step()
            if step % 10 == 9:
                trace.evaluation.append(evaluate(self.model))
        return trace


@cache
def report_for(net: str) -> ScaleInvarianceReport:
    return scale_invariance_report(build(net), batch(0)[0])


def converted(
    case: Case,
    net: str,
    *,
    schedule: EquivalentSchedule | None = None,
) -> Converted:
    model, report = build(net), report_for(net)
    optimizer = case.build(equivalent_parameter_groups(model, report))
    scheduler = ExponentialEquivalentLR(optimizer, schedule or case.schedule(), model, report)
    return Converted(model, optimizer, scheduler)


def cosine(step: int) -> float:
    return 0.05 * (1 + math.cos(math.pi * step / STEPS))


def restarts(step: int) -> float:
    return 0.05 * (1 + math.cos(math.pi * (step % 50) / 50))


SCHEDULES = {
    "constant": Case(),
    "no momentum": Case(momentum=lambda step: 0.0),
    "dampened": Case(dampening=0.5),
    "step": Case(lr=lambda step: 0.1 if step < 70 else 0.01 if step < 140 else 0.001),
    "cosine": Case(lr=cosine),
    "restarts": Case(lr=restarts),
    "warmup from zero": Case(lr=lambda step: 0.1 * min(1.0, step / 40)),
    "varying momentum": Case(momentum=lambda step: 0.8 + 0.15 * math.sin(step / 20) ** 2),
    "varying decay": Case(weight_decay=lambda step: 1e-2 * (step % 30) / 30),
    "all varying": Case(
        lr=restarts,
        momentum=lambda step: 0.95 - 0.1 * (step % 20) / 20,
        weight_decay=lambda step: 4e-3 if step < 120 else 0.0,
    ),
}
OPTIMIZERS = {
    "nesterov": Case(optimizer="nesterov"),
    "nesterov, cosine and varying momentum": Case(
        lr=cosine, momentum=lambda step: 0.9 - 0.2 * (step % 40) / 40, optimizer="nesterov"
    ),
    "sgdw": Case(optimizer="sgdw", weight_decay=lambda step: 0.05),
    "sgdw, restarts": Case(optimizer="sgdw", lr=restarts, weight_decay=lambda step: 0.05),
    "adamw": Case(optimizer="adamw", lr=lambda step: 3e-3, weight_decay=lambda step: 0.5),
    "adamw, cosine": Case(
        optimizer="adamw", lr=lambda step: 0.1 * cosine(step), weight_decay=lambda step: 0.5
    ),
}


def all_cases() -> list[Any]:
    """Every schedule and optimiser on batch norm, and a choice of them on every other net."""
    everywhere = ("constant", "restarts", "nesterov", "sgdw", "adamw")
    found = []
    for name, case in (SCHEDULES | OPTIMIZERS).items():
        for net in NETS:
            # Adam divides by the size of a gradient that is nothing but rounding on the biases in front of
            # a batch norm, and so turns it into steps; the bias-free net below has no such tensors.
            if net == "batch norm" and case.optimizer == "adamw":
                continue
            if net.startswith("batch norm") or name in everywhere:
                found.append(pytest.param(case, net, id=f"{name} on {net}"))
    return found


@pytest.mark.parametrize(("case", "net"), all_cases())
def test_both_runs_compute_the_same_functions(case: Case, net: str) -> None:
    assert original_run(case, net).distance(converted(case, net).run(0, STEPS)) < AGREE


def norm_clip(parameters: list[torch.Tensor]) -> object:
    return nn.utils.clip_grad_norm_(parameters, 0.2)


def test_clipping_the_global_norm_is_exact_in_the_original_units() -> None:
    reference = original_run(Case(), "batch norm", clip=norm_clip)
    exact = converted(Case(), "batch norm").run(
        0, STEPS, clip=lambda scheduler: scheduler.clip_grad_norm_(0.2)
    )
    assert reference.distance(exact) < AGREE

    wrong = converted(Case(), "batch norm")
    naive = wrong.run(0, STEPS, clip=lambda scheduler: norm_clip(list(wrong.model.parameters())))
    assert reference.distance(naive) > 1e-3
    assert reference.distance(original_run(Case(), "batch norm")) > 1e-3  # clipping does something here


def test_clipping_each_entry_is_exact_in_the_original_units() -> None:
    reference = original_run(Case(), "layer norm", clip=lambda p: nn.utils.clip_grad_value_(p, 0.01))
    exact = converted(Case(), "layer norm").run(
        0, STEPS, clip=lambda scheduler: scheduler.clip_grad_value_(0.01)
    )
    assert reference.distance(exact) < AGREE


def private_gradients(
    model: nn.Module, step: int, scaling: dict[str, tuple[float, float]], *, batch_size: int = 32
) -> None:
    """DP-SGD, clipped tensor by tensor; the same unit noise at each step whatever its scale."""
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(torch.func.functional_call(model, weights, (x[None],)), y[None])

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, *batch(step))
    generator = torch.Generator().manual_seed(step)
    for name, parameter in model.named_parameters():
        clip, deviation = scaling[name]
        gradient = per_sample[name]
        norms = gradient.flatten(1).norm(dim=1).clamp(min=1e-300)
        clipped = gradient * (clip / norms).clamp(max=1.0).view(-1, *[1] * (gradient.ndim - 1))
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = (clipped.sum(0) + deviation * noise) / batch_size


def private_reference(case: Case, clip: float, deviation: float) -> Trace:
    model, trace = build("layer norm"), Trace([], [])
    optimizer = case.build(model.parameters())
    for step in range(STEPS):
        trace.training.append(one_step(model, step))
        private_gradients(model, step, {name: (clip, deviation) for name, _ in model.named_parameters()})
        optimizer.step()
    return trace


def private_equivalent(case: Case, clip: float, multiplier: float, *, scaled: str = "both") -> Trace:
    """``scaled``: which of clip and noise follow the scale; only "both" is right."""
    run, trace = converted(case, "layer norm"), Trace([], [])
    names = {id(value): name for name, value in run.model.named_parameters()}
    for step in range(STEPS):
        trace.training.append(one_step(run.model, step))
        pairs = run.scheduler.private_scaling(max_grad_norm=clip, noise_multiplier=multiplier)
        # The accountant sees the noise over the sensitivity; that ratio never changes.
        assert all(deviation / threshold == pytest.approx(multiplier) for threshold, deviation in pairs)
        scaling = {}
        for group, (threshold, deviation) in zip(run.optimizer.param_groups, pairs, strict=True):
            pair = (
                clip if scaled == "noise" else threshold,
                multiplier * clip if scaled == "clip" else deviation,
            )
            scaling |= {names[id(parameter)]: pair for parameter in group["params"]}
        private_gradients(run.model, step, scaling)
        run.optimizer.step()
        run.scheduler.step()
    assert run.scheduler.scale > 2  # so that there was something to scale
    return trace


def test_private_training_scales_clip_and_noise_and_keeps_its_accounting() -> None:
    reference = private_reference(Case(), 0.5, 1.1 * 0.5)
    assert reference.distance(private_equivalent(Case(), 0.5, 1.1)) < AGREE
    assert reference.distance(private_equivalent(Case(), 0.5, 1.1, scaled="clip")) > 1e-2
    assert reference.distance(private_equivalent(Case(), 0.5, 1.1, scaled="noise")) > 1e-2


DROPS = {70: 0.1, 140: 0.1}


@pytest.mark.parametrize("smaller_root", [False, True])
def test_phases_of_constant_growth_are_exact_with_their_buffer_jumps(smaller_root: bool) -> None:
    schedule = tapered_exponential(0.1, 0.9, 5e-3, DROPS, smaller_root=smaller_root)
    reference = original_run(SCHEDULES["step"], "batch norm, joint scale and shift")
    trace = converted(SCHEDULES["step"], "batch norm, joint scale and shift", schedule=schedule).run(0, STEPS)
    assert reference.distance(trace) < AGREE


@pytest.mark.parametrize(("name", "net"), [("nesterov", "layer norm"), ("adamw", "layer norm")])
def test_the_rate_alone_is_not_enough_for_nesterov_and_adamw(name: str, net: str) -> None:
    case = OPTIMIZERS[name]
    equivalent = converted(case, net)
    rates = case.schedule().learning_rates(STEPS)
    group, trace = equivalent.optimizer.param_groups[0], Trace([], [])
    group.update(momentum=0.9) if name == "nesterov" else group.update(eps=1e-8)
    for step in range(STEPS):
        group["lr"] = rates[step]
        trace.training.append(one_step(equivalent.model, step))
        equivalent.optimizer.step()
    assert Trace(original_run(case, net).training, []).distance(trace) > 1e-2
