r"""How far candidate images are from explaining an update, and what is expected of natural images.

Axes: n images, D weights, C H W.

With g what the candidates would have sent (``local_update.py``) and g* what was received:

    euclidean   |g − g*|² / |g*|²                                 (Zhu et al. 2019, equation 4, made relative)
    cosine      1 − ⟨g, g*⟩ / (|g|·|g*|)                          (Geiping et al. 2020, equation 4)

plus α·TV(x), the mean absolute difference of neighbours, on |x| where the inputs carry random signs (only |x|
is smooth), plus β·Σ_layers (|μ(x) − μ̂| + |σ²(x) − σ̂²|) of the batch normalisation layers (Yin et al. 2021,
equation 6), where μ̂, σ̂² are the batch's own statistics if the attacker has them, or the model's running ones.

The attacker knows the defence. A pruned g* is compared where it is not zero; a clipped one is compared with
the candidates' update clipped alike; noise only raises the level that the best candidate reaches.

**Unexplained share**: 1 − cos²(g, g*), what is left of |g*|² at the best scale: 0 for the true images without
a defence, near 1 for what no image explains. It is what an attacker without the truth can see.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from .local_update import Simulator
from .view import BatchStatistics

DISTANCES = ("euclidean", "cosine")


class Objective:
    """What the optimising attacks minimise.

    Args:
        simulator: computes g.
        distance: ``"euclidean"`` or ``"cosine"``.
        total_variation: α.
        batch_norm: β.
        statistics: μ̂, σ̂² by layer name; of no use without β.
    """

    def __init__(
        self,
        simulator: Simulator,
        *,
        distance: str = "cosine",
        total_variation: float = 0.0,
        batch_norm: float = 0.0,
        statistics: BatchStatistics | None = None,
    ) -> None:
        self.simulator, self.distance = simulator, distance
        self.total_variation, self.batch_norm = total_variation, batch_norm
        defence = simulator.view.defence
        self.kept = [value != 0 for value in simulator.observed] if defence.prune else None
        self.clip = defence.clip if defence.num_sites == 1 else None
        self.size = max(float(sum(value.square().sum() for value in simulator.observed)), 1e-300)
        self.statistics = statistics if batch_norm else None
        self._inputs: dict[str, torch.Tensor] = {}
        for name in self.statistics or {}:
            module = simulator.model.get_submodule(name)
            module.register_forward_pre_hook(self._keep(name))

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The objective; a scalar, differentiable in ``images`` and ``labels``."""
        loss = self.mismatch(self._sent(images, labels))
        if self.total_variation:
            masked = self.simulator.view.sign_masked
            loss = loss + self.total_variation * total_variation(images.abs() if masked else images)
        if self.statistics:
            loss = loss + self.batch_norm * self._batch_norm_gap()
        return loss

    def mismatch(self, sent: list[torch.Tensor]) -> torch.Tensor:
        """The distance alone."""
        if self.distance == "euclidean":
            gaps = [(g - seen).square().sum() for g, seen in zip(sent, self.simulator.observed, strict=True)]
            return torch.stack(gaps).sum() / self.size
        return 1 - self._cosine(sent)

    def unexplained(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """1 − cos²(g, g*)."""
        cosine = float(self._cosine(self._sent(images, labels)).detach())
        return 1 - max(0.0, cosine) ** 2

    def _sent(self, images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        sent = self.simulator.simulate(images, labels)
        if self.clip is not None:
            norm = torch.stack([g.square().sum() for g in sent]).sum().sqrt()
            shrink = (self.clip / norm).clamp(max=1.0)
            sent = [g * shrink for g in sent]
        if self.kept is not None:
            sent = [g * kept for g, kept in zip(sent, self.kept, strict=True)]
        return sent

    def _cosine(self, sent: list[torch.Tensor]) -> torch.Tensor:
        inner = [(g * seen).sum() for g, seen in zip(sent, self.simulator.observed, strict=True)]
        norm = torch.stack([g.square().sum() for g in sent]).sum().sqrt()
        cosine: torch.Tensor = torch.stack(inner).sum() / (norm.clamp_min(1e-30) * self.size**0.5)
        return cosine

    def _keep(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._inputs[name] = inputs[0]

        return hook

    def _batch_norm_gap(self) -> torch.Tensor:
        gaps = []
        for name, (mean, variance) in (self.statistics or {}).items():
            given = self._inputs[name].transpose(0, 1).flatten(1)
            gaps.append((given.mean(1) - mean.to(given)).norm())
            gaps.append((given.var(1, unbiased=False) - variance.to(given)).norm())
        return torch.stack(gaps).sum()


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Mean |difference| of vertical neighbours plus that of horizontal ones, of (n, C, H, W)."""
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().mean()
    across = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().mean()
    return down + across


def running_statistics(model: nn.Module) -> BatchStatistics:
    """What every attacker has: the running mean and variance inside the weights the server sent."""
    return {
        name: (module.running_mean.clone(), module.running_var.clone())
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        and module.running_mean is not None
        and module.running_var is not None
    }


def batch_statistics(model: nn.Module, images: torch.Tensor) -> BatchStatistics:
    """The exact statistics of ``images`` (n, C, H, W) at every batch normalisation layer in training mode."""
    found: BatchStatistics = {}

    def remember(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            given = inputs[0].detach().transpose(0, 1).flatten(1)
            found[name] = (given.mean(1), given.var(1, unbiased=False))

        return hook

    model = copy.deepcopy(model).train()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(remember(name))
    with torch.no_grad():
        model(images)
    return found


def statistics_of_one_step(
    model: nn.Module, after: dict[str, torch.Tensor], *, num_images: int, image_shape: tuple[int, int, int]
) -> BatchStatistics | None:
    """The batch statistics inside an update of one step that carries the running ones; ``None`` without them.

    Args:
        model: with the buffers as sent to the site.
        after: the buffers received, by state-dict name.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    if not layers or any(f"{name}.running_var" not in after for name in layers):
        return None
    positions = _positions(model, image_shape)
    before = running_statistics(model)
    found: BatchStatistics = {}
    for name, layer in layers.items():
        received = (after[f"{name}.running_mean"], after[f"{name}.running_var"])
        momentum = 0.1 if layer.momentum is None else float(layer.momentum)
        one = statistics_from_running(
            {name: before[name]}, {name: received}, count=num_images * positions[name], momentum=momentum
        )
        found |= one
    return found


def _positions(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """BatchNorm module name → H·W of its input."""
    found: dict[str, int] = {}
    probe = copy.deepcopy(model).eval()
    for name, module in probe.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: found.__setitem__(name, int(inputs[0][0, 0].numel()))
            )
    with torch.no_grad():
        probe(torch.zeros(1, *image_shape))
    return found


def statistics_from_running(
    before: BatchStatistics, after: BatchStatistics, *, count: int, momentum: float = 0.1
) -> BatchStatistics:
    """The batch statistics that one local step wrote into the running ones: exact, no assumption.

    running ← (1 − momentum)·running + momentum·batch, the variance there being the unbiased one.
    So "statistics unknown" is not a protection if a model with batch normalisation sends its buffers.

    Args:
        count: values behind one channel's statistics (n·H·W of that layer's input), for the bias.
    """
    return {
        name: (
            (after[name][0] - (1 - momentum) * mean) / momentum,
            (after[name][1] - (1 - momentum) * variance) / momentum * (count - 1) / count,
        )
        for name, (mean, variance) in before.items()
    }
