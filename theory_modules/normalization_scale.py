"""What a normalisation layer remembers about the scale of its input: eps and running statistics.

y = (x − mean)/sqrt(var + eps) is unchanged under x → s·x only if eps → s²·eps; and a layer that evaluates
with running averages needs mean → s·mean, var → s²·var as well. If all converted tensors grow by s, the
input of a layer grows by s^d with a *degree* d: 1 behind a converted convolution, 2 behind one that reads
the output of a converted scale-and-shift, 0 where no converted tensor reaches it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

EPS_NAMES = ("eps", "epsilon", "variance_epsilon")


@dataclass(frozen=True)
class Normalization:
    """A layer with an eps or running statistics, the degree of its input, and its original eps."""

    module: nn.Module
    degree: int
    eps_name: str | None
    eps: float

    def set_scale(self, scale: float) -> None:
        """Set eps for weights that are ``scale`` times the original ones."""
        if self.eps_name is not None:
            setattr(self.module, self.eps_name, self.eps * scale ** (2 * self.degree))

    @torch.no_grad()
    def multiply_statistics(self, factor: float) -> None:
        """Carry running mean and variance over to weights ``factor`` times larger."""
        mean, variance = statistics(self.module)
        if mean is not None:
            mean.mul_(factor**self.degree)
        if variance is not None:
            variance.mul_(factor ** (2 * self.degree))


def statistics(module: nn.Module) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(running_mean, running_var) of a module, None where it has none."""
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return (
        mean if isinstance(mean, torch.Tensor) else None,
        variance if isinstance(variance, torch.Tensor) else None,
    )


def eps_name(module: nn.Module) -> str | None:
    """The attribute that holds a module's eps, or None. RMSNorm's unset eps (None) counts as one."""
    for name in EPS_NAMES:
        if hasattr(module, name) and (
            isinstance(getattr(module, name), float) or isinstance(module, nn.RMSNorm)
        ):
            return name
    return None


def default_eps(module: nn.Module, name: str | None, *, double: bool) -> float:
    """The eps in force: torch's RMSNorm takes the machine epsilon of its computation when it is None."""
    if name is None:
        return 0.0
    value = getattr(module, name)
    return torch.finfo(torch.float64 if double else torch.float32).eps if value is None else float(value)


def normalizations(model: nn.Module, degrees: Mapping[str, int]) -> list[Normalization]:
    """The layers of ``model`` named in ``degrees`` (module name → degree) whose degree is not 0."""
    modules = dict(model.named_modules())
    double = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    found = []
    for name, degree in degrees.items():
        if degree:
            attribute = eps_name(modules[name])
            eps = default_eps(modules[name], attribute, double=double)
            found.append(Normalization(modules[name], degree, attribute, eps))
    return found


def normalization_names(model: nn.Module) -> list[str]:
    """Names of all modules with an eps or running statistics."""
    return [
        name
        for name, module in model.named_modules()
        if eps_name(module) is not None or statistics(module) != (None, None)
    ]


def scale_all(layers: Iterable[Normalization], scale: float) -> None:
    """eps and statistics of every layer for weights ``scale`` times the original ones."""
    for layer in layers:
        layer.set_scale(scale)
        layer.multiply_statistics(scale)
