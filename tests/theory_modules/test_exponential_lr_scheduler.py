"""The scheduler as a piece of software: rescaling, resuming, restoring, parameter groups, refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from theory_modules.exponential_lr import (
    EquivalentSchedule,
    ExponentialEquivalentLR,
    NoEquivalentScheduleError,
    NotScaleInvariantError,
    equivalent_parameter_groups,
    exponential_lr_equivalent,
    growth_root,
    scale_invariance_report,
    tapered_exponential,
)

LR, MOMENTUM, DECAY = 0.2, 0.9, 5e-3


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Convolutions and a scale-and-shift that convert (inputs of degree one and two), and a head."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 3),
    ).to(dtype)


def images(step: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(12, 1, 7, 7, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(
        dtype
    )


REPORT = scale_invariance_report(network(), images(0))


def make_optimizer(kind: str, groups: Any) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=0.01, weight_decay=1.0, amsgrad=True)
    return torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, nesterov=kind == "nesterov")


def make_schedule(kind: str) -> EquivalentSchedule:
    if kind == "adamw":
        return exponential_lr_equivalent(0.01, 0.0, 1.0, {30: 0.5}, optimizer="adamw")
    if kind == "phases":
        return tapered_exponential(LR, MOMENTUM, DECAY, {30: 0.5})
    return exponential_lr_equivalent(LR, MOMENTUM, DECAY, {30: 0.5}, optimizer=kind)


class Training:
    """A model, its optimiser and its scheduler, trained on a fixed stream of batches."""

    def __init__(self, kind: str = "sgd", *, dtype: torch.dtype = torch.float64, **options: Any) -> None:
        self.model, self.dtype = network(dtype), dtype
        self.optimizer = make_optimizer(kind, equivalent_parameter_groups(self.model, REPORT))
        self.scheduler = ExponentialEquivalentLR(
            self.optimizer, make_schedule(kind), self.model, REPORT, **options
        )

    def steps(self, start: int, stop: int) -> list[torch.Tensor]:
        return [
            take_step(self.model, self.optimizer, s, self.dtype, self.scheduler.step)
            for s in range(start, stop)
        ]


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    dtype: torch.dtype,
    after: Callable[[], None] | None = None,
) -> torch.Tensor:
    inputs = images(step, dtype)
    optimizer.zero_grad()
    outputs = model(inputs)
    functional.cross_entropy(outputs, torch.arange(12) % 3).backward()
    optimizer.step()
    if after:
        after()
    return outputs.detach()


def evaluated(model: nn.Module, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    with torch.no_grad():
        outputs = model.eval()(images(-1, dtype))
    model.train()
    return outputs


KINDS = ["sgd", "nesterov", "adamw", "phases"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_rescaling_by_powers_of_two_changes_no_bit(kind: str, dtype: torch.dtype) -> None:
    never, often, now_and_then = (Training(kind, dtype=dtype, rescale_bits=bits) for bits in (None, 1, 2))
    reference = never.steps(0, 80)
    for other in (often, now_and_then):
        assert all(torch.equal(a, b) for a, b in zip(reference, other.steps(0, 80), strict=True))
        assert torch.equal(evaluated(never.model, dtype), evaluated(other.model, dtype))
    assert never.scheduler.scale > 1.5  # so that something was there to rescale
    assert often.scheduler.scale < 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_bitwise_the_same(kind: str) -> None:
    through, first, second = (Training(kind, rescale_bits=1) for _ in range(3))
    expected = through.steps(0, 60)
    first.steps(0, 40)
    saved = copy.deepcopy(
        (first.model.state_dict(), first.optimizer.state_dict(), first.scheduler.state_dict())
    )
    second.model.load_state_dict(saved[0])
    second.optimizer.load_state_dict(saved[1])
    second.scheduler.load_state_dict(saved[2])
    assert second.scheduler.get_last_lr() == first.scheduler.get_last_lr()
    assert all(torch.equal(a, b) for a, b in zip(expected[40:], second.steps(40, 60), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_restoring_the_scale_hands_the_run_back_to_weight_decay(kind: str) -> None:
    plain = network()
    optimizer = make_optimizer(kind, plain.parameters())
    schedule = make_schedule(kind)

    def original(start: int, stop: int, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        for step in range(start, stop):
            for group in optimizer.param_groups:
                group["lr"] = schedule.original(step).learning_rate
            take_step(model, optimizer, step, torch.float64)

    original(0, 80, optimizer, plain)
    ours = Training(kind, rescale_bits=1)
    ours.steps(0, 50)
    ours.scheduler.restore_original_scale_()
    original(50, 80, ours.optimizer, ours.model)
    for (name, a), b in zip(plain.state_dict().items(), ours.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=f"{kind}: {name}")
    torch.testing.assert_close(evaluated(plain), evaluated(ours.model), rtol=1e-10, atol=1e-10)


def test_a_run_may_be_converted_in_rounds() -> None:
    """Restore, convert again from the current step with the buffer as it is: one run all the same."""
    through, rounds = Training(), Training()
    expected = through.steps(0, 60)
    outputs = rounds.steps(0, 25)
    rounds.scheduler.restore_original_scale_()
    rounds.scheduler = ExponentialEquivalentLR(
        rounds.optimizer, make_schedule("sgd").starting_at(25), rounds.model, REPORT
    )
    outputs += rounds.steps(25, 60)
    assert max(float((a - b).abs().max()) for a, b in zip(expected, outputs, strict=True)) < 1e-10


def test_other_groups_keep_their_rate_and_their_decay() -> None:
    model = network()
    converted, head = equivalent_parameter_groups(model, REPORT)
    bias = {"params": [head["params"].pop()], "weight_decay": 0.0, "lr": LR / 2}
    optimizer = make_optimizer("sgd", [converted, head, bias])
    scheduler = ExponentialEquivalentLR(optimizer, make_schedule("sgd"), model, REPORT)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, DECAY, 0.0]
    for step in range(31):
        take_step(model, optimizer, step, torch.float64, scheduler.step)
    growing, *others = scheduler.get_last_lr()
    assert others == pytest.approx([LR / 2, LR / 4], rel=1e-15)  # the drop by a half at step 30
    assert growing > LR / 2
    assert scheduler.gradient_scales()[1:] == [1.0, 1.0]


def test_the_rates_are_those_of_the_schedule() -> None:
    training = Training(rescale_bits=None)
    seen = []
    for step in range(40):
        seen.append(training.optimizer.param_groups[0]["lr"])
        training.steps(step, step + 1)
    assert seen == make_schedule("sgd").learning_rates(40).tolist()


def test_ten_thousand_float32_steps_outgrow_float32_without_overflow() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(12, 16, bias=False), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4))
    inputs = torch.randn(512, 12)
    labels = (inputs[:, :4] + inputs[:, 4:8].abs()).argmax(1)
    report = scale_invariance_report(model, inputs[:8])
    optimizer = make_optimizer("sgd", equivalent_parameter_groups(model, report))
    schedule = exponential_lr_equivalent(LR, MOMENTUM, DECAY)
    scheduler = ExponentialEquivalentLR(optimizer, schedule, model, report)
    first = scheduler.current.learning_rate.log2()
    for step in range(10_000):
        rows = slice(32 * (step % 16), 32 * (step % 16) + 32)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()
        scheduler.step()
    growth = (scheduler.current.learning_rate.log2() - first) * math.log10(2)
    assert growth > 70  # float32 ends at 10^38.5
    # Step by step by the root of x^2 - (1 + 0.9 - 0.001) x + 0.9, once the start has died away.
    assert growth == pytest.approx(-2 * 10_000 * math.log10(growth_root(LR, MOMENTUM, DECAY)), rel=1e-2)
    assert max(float(parameter.detach().abs().max()) for parameter in model.parameters()) < 2**17
    accuracy = float((model(inputs).argmax(1) == labels).float().mean())
    assert accuracy > 0.5  # of four classes, and after 10^97: still a trained network


# --- refusals ----------------------------------------------------------------------------------------------


def test_a_network_without_normalisation_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    report = scale_invariance_report(model, torch.randn(6, 4))
    with pytest.raises(NotScaleInvariantError, match="hint:"):
        equivalent_parameter_groups(model, report)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    with pytest.raises(NotScaleInvariantError):
        ExponentialEquivalentLR(optimizer, make_schedule("sgd"), model, report)


def refused(groups: Callable[[nn.Module], Any], reason: str, **options: Any) -> None:
    model = network()
    settings = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY} | options
    optimizer = torch.optim.SGD(groups(model), **settings)
    with pytest.raises(NoEquivalentScheduleError, match=reason):
        ExponentialEquivalentLR(optimizer, make_schedule("sgd"), model, REPORT)


def proper(model: nn.Module) -> Any:
    return equivalent_parameter_groups(model, REPORT)


def test_a_group_that_mixes_converted_and_other_tensors_is_refused() -> None:
    refused(lambda model: model.parameters(), "mixes")


def test_a_converted_tensor_nobody_optimises_is_refused() -> None:
    refused(lambda model: list(model[0].parameters()), "does not hold it")


def test_an_optimiser_unlike_the_schedule_is_refused() -> None:
    refused(proper, "momentum=0.5", momentum=0.5)
    refused(proper, "nesterov=True", nesterov=True)
    model = network()
    with pytest.raises(NoEquivalentScheduleError, match="AdamW"):
        ExponentialEquivalentLR(make_optimizer("adamw", proper(model)), make_schedule("sgd"), model, REPORT)


def test_epochs_and_steps_after_restoring_are_refused() -> None:
    training = Training()
    training.steps(0, 1)
    with pytest.raises(NoEquivalentScheduleError, match="epochs"):
        training.scheduler.step(3)
    training.scheduler.restore_original_scale_()
    with pytest.raises(NoEquivalentScheduleError, match="restored"):
        training.scheduler.step()
