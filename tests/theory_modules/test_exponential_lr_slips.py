"""The closed form by hand, without a line of the library's, and every way to get it slightly wrong.

Positive control: the dozen lines of ``ByHand`` agree with weight decay to rounding. Negative controls: each
of its fields, got wrong, is far off. So the agreement measured elsewhere is not the blindness of a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.nn import functional

from theory_modules.exponential_lr import growth_root

LR, MOMENTUM, DECAY, EPS = 0.1, 0.9, 5e-3, 0.01
Outputs = list[torch.Tensor]


@cache
def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(32, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return inputs, (inputs[:, :4] + inputs[:, 4:8].abs()).argmax(1)


def network() -> tuple[nn.Module, list[nn.BatchNorm1d], list[nn.Parameter], list[nn.Parameter]]:
    """A batch-norm network, its norms, the tensors in front of them, and all the others."""
    torch.manual_seed(7)
    first, second, head = nn.Linear(12, 32), nn.Linear(32, 32), nn.Linear(32, 4)
    norms = [nn.BatchNorm1d(32, eps=EPS) for _ in range(2)]
    model = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU(), head).double()
    inner = [*first.parameters(), *second.parameters()]
    return model, norms, inner, [p for module in (*norms, head) for p in module.parameters()]


def train_step(model: nn.Module, step: int) -> torch.Tensor:
    inputs, targets = batch(step)
    model.zero_grad(set_to_none=True)
    outputs = model(inputs)
    functional.cross_entropy(outputs, targets).backward()
    return outputs.detach()


def evaluate(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        outputs = model.eval()(batch(100_000)[0])
    model.train()
    return outputs


@cache
def with_decay(steps: int) -> tuple[Outputs, Outputs]:
    """The original run: outputs in training, and in evaluation, after every step."""
    model, *_ = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    training, evaluation = [], []
    for step in range(steps):
        training.append(train_step(model, step))
        optimizer.step()
        evaluation.append(evaluate(model))
    return training, evaluation


def distance(first: Outputs, second: Outputs) -> float:
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(first, second, strict=True))


@dataclass(frozen=True)
class ByHand:
    """Rate eta alpha^(-2t-1), preset buffer, eps and statistics scaled; each field can be got wrong."""

    alpha: float
    exponent_offset: int = 1
    kappa: float | None = None
    grow: bool = True
    scale_eps: bool = True
    scale_statistics: bool = True
    head_decay: bool = True

    def run(self, steps: int) -> tuple[Outputs, Outputs]:
        model, norms, inner, rest = network()
        optimizer = torch.optim.SGD(
            [{"params": inner}, {"params": rest, "weight_decay": DECAY * self.head_decay}],
            lr=LR,
            momentum=MOMENTUM,
        )
        kappa = (1 - self.alpha) / (self.alpha * LR) if self.kappa is None else self.kappa
        for parameter in inner:
            optimizer.state[parameter]["momentum_buffer"] = -kappa * parameter.detach()
        training, evaluation = [], []
        growth = self.alpha if self.grow else 1 / self.alpha
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = LR * growth ** (-2 * step - self.exponent_offset)
            training.append(train_step(model, step))
            optimizer.step()
            for norm in norms:
                if self.scale_statistics and norm.running_mean is not None and norm.running_var is not None:
                    norm.running_mean /= self.alpha
                    norm.running_var /= self.alpha**2
                if self.scale_eps:
                    norm.eps = EPS * self.alpha ** (-2 * step - 2)
            evaluation.append(evaluate(model))
        return training, evaluation


LARGER, SMALLER = (growth_root(LR, MOMENTUM, DECAY, smaller=smaller) for smaller in (False, True))
WRONG = {
    "roots in the wrong order": ByHand(SMALLER, kappa=(1 - LARGER) / (LARGER * LR)),
    "missing -1 in the exponent": ByHand(LARGER, exponent_offset=0),
    "a shrinking rate": ByHand(LARGER, grow=False),
    "momentum ignored": ByHand(1 - LR * DECAY),
    "first-order root": ByHand(1 - LR * DECAY / (1 - MOMENTUM)),
    "empty buffer": ByHand(LARGER, kappa=0.0),
    "eps left alone": ByHand(LARGER, scale_eps=False),
    "statistics left alone": ByHand(LARGER, scale_statistics=False),
    "head without its decay": ByHand(LARGER, head_decay=False),
}


def test_the_closed_form_by_hand_agrees_with_weight_decay() -> None:
    expected, ours = with_decay(200), ByHand(LARGER).run(200)
    assert distance(expected[0], ours[0]) < 1e-10
    assert distance(expected[1], ours[1]) < 1e-10


def test_every_slip_shows() -> None:
    expected = with_decay(60)
    shown = {}
    for name, slip in WRONG.items():
        ours = slip.run(60)
        shown[name] = max(distance(expected[0], ours[0]), distance(expected[1], ours[1]))
    assert min(shown.values()) > 1e-3, shown  # ten million times the agreement asked for above


def test_forgotten_statistics_agree_in_training_and_fail_in_evaluation() -> None:
    expected, forgotten = with_decay(60), WRONG["statistics left alone"].run(60)
    assert distance(expected[0], forgotten[0]) < 1e-10
    assert distance(expected[1], forgotten[1]) > 0.01
