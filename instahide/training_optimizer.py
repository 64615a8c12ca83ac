"""The optimiser of a run, what moves its learning rate, and its state as plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from .light_optimizers import spare_the_compiler, take_step
from .training_config import TrainingConfig

Rates = Callable[[int, int], float]


class Descent:
    """torch's optimiser under a learning rate that is set before each step.

    Args:
        parameters: what is trained.
        config: optimiser, rate, momentum, decay and clipping.
        rates: step of the run, from 0, and steps in an epoch → learning rate.
        groups: the same parameters in groups, where they need it.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        config: TrainingConfig,
        rates: Rates,
        *,
        groups: list[dict[str, Any]] | None = None,
    ) -> None:
        self.parameters, self.config, self.rates = parameters, config, rates
        self.rate = config.learning_rate
        spare_the_compiler()
        self.optimizer = build_optimizer(groups or parameters, config)

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from the ``state()`` of an earlier run; nothing, where there was none."""
        load_optimizer(self.optimizer, tensors)

    def gradient_scales(self) -> list[float]:
        """What a gradient found here is to be multiplied by for the original run's, for each parameter."""
        return [1.0] * len(self.parameters)

    def begin_step(self, step: int, steps_per_epoch: int) -> float:
        """Set the rate of ``step``, counted over the whole run, and return it."""
        self.rate = float(self.rates(step, steps_per_epoch))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        return self.rate

    def clip(self, max_norm: float) -> None:
        """Shorten the gradient, all parameters together, to ``max_norm``."""
        nn.utils.clip_grad_norm_(self.parameters, max_norm)

    def step(self) -> None:
        """Move the parameters along the gradients that are there."""
        take_step(self.optimizer)

    def end(self, *, interrupted: bool) -> None:
        """After the last step of this call of ``train``."""

    def state(self) -> dict[str, torch.Tensor]:
        """The optimiser's tensors as ``"<parameter index>.<name>"``."""
        return optimizer_tensors(self.optimizer)


def build_optimizer(parameters: ParamsT, config: TrainingConfig) -> torch.optim.Optimizer:
    """torch's SGD or AdamW as ``config`` has it; ``parameters`` may be groups."""
    # One fused kernel a step instead of several per parameter.
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
    return torch.optim.SGD(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Copies on the CPU, as ``"<parameter index>.<name>"``."""
    return {
        f"{index}.{name}": value.detach().cpu().clone()
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Inverse of ``optimizer_tensors``."""
    if not tensors:
        return
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
