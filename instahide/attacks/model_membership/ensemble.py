"""Many small networks of one architecture trained side by side, as one network with stacked weights.

Axes: S networks, N images of each, B images in a batch, C channels, H rows, W columns, K classes.

Shadow models are many and small, and one step of a small network is too short to keep a processor
busy. So the weights of all S are stacked, (S, ...) per parameter, and ``torch.func.vmap`` turns each
layer into one batched product. The loss is the sum of the S losses: the gradient of network s then
depends on its own data alone, SGD and AdamW act value by value, and gradients are clipped network by
network, so every network gets exactly the steps :func:`instahide.training.train` would take on the
same batches (a test compares the two).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional

from ...errors import InvalidInputError
from ...light_optimizers import spare_the_compiler, take_step
from ...mixing import to_unit_range
from ...models import ModelSpec, build_from_spec
from ...training import DivergedError
from ...training_config import TrainingConfig
from ...training_data import batch_bounds, generator_of
from ...training_optimizer import build_optimizer

EpochData = Callable[[int], tuple[torch.Tensor, torch.Tensor]]
"""epoch → images (S, N, C, H, W), uint8 or float in [-1, 1], and labels (S, N) or (S, N, K)."""


class Ensemble:
    """S networks of one kind; ``initialization_seeds`` has one number for each.

    Raises:
        InvalidInputError: an architecture with running statistics, which one batched call cannot keep.
    """

    def __init__(self, spec: ModelSpec, initialization_seeds: list[int]) -> None:
        if spec.normalization != "group":
            raise InvalidInputError(
                "shadow models cannot be trained side by side with batch normalisation",
                hint='use normalization="group"',
            )
        networks = [build_from_spec(spec, seed) for seed in initialization_seeds]
        self._skeleton = networks[0]
        stacked, _ = torch.func.stack_module_state(networks)
        self.parameters: dict[str, nn.Parameter] = {
            name: nn.Parameter(value.detach()) for name, value in stacked.items()
        }
        self.size = len(networks)

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """(S, B, K) before the softmax, for images (S, B, C, H, W), or (B, C, H, W) shown to all."""
        own = 0 if images.ndim == 5 else None
        stacked: dict[str, torch.Tensor] = dict(self.parameters)
        called: torch.Tensor = torch.func.vmap(self._one, in_dims=(0, own))(stacked, images)
        return called

    def _one(self, parameters: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = torch.func.functional_call(self._skeleton, parameters, (images,))
        return scores

    def train(self, data: EpochData, config: TrainingConfig, *, seeds: list[int]) -> Iterator[int]:
        """Train in place, yielding the number of epochs done after each.

        Args:
            data: asked for every epoch; all networks see equally many images.
            seeds: one for each network, of the order of its images.
        """
        if config.augment or config.proximal_mu or config.label_smoothing:
            raise InvalidInputError(
                "networks side by side are trained without augmentation, proximal term or label smoothing",
                hint="leave augment, proximal_mu and label_smoothing at their defaults",
            )
        spare_the_compiler()
        optimizer = build_optimizer(list(self.parameters.values()), config)
        for epoch in range(config.epochs):
            images, labels = data(epoch)
            bounds = batch_bounds(images.shape[1], config.batch_size)
            order = torch.stack(
                [torch.randperm(images.shape[1], generator=generator_of(seed, epoch)) for seed in seeds]
            )
            for step, (first, last) in enumerate(bounds):
                rate = config.learning_rate_at(epoch * len(bounds) + step, steps_per_epoch=len(bounds))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                chosen = order[:, first:last]
                rows = torch.arange(self.size)[:, None]
                self._step(images[rows, chosen], labels[rows, chosen], optimizer, config)
            yield epoch + 1

    def _step(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
    ) -> None:
        pixels = to_unit_range(images) if images.dtype == torch.uint8 else images
        scores = self.scores(pixels)
        # Mean over the batch, sum over the networks.
        total = functional.cross_entropy(scores.flatten(0, 1), labels.flatten(0, 1), reduction="sum")
        loss = total / images.shape[1]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if not torch.isfinite(loss):
            raise DivergedError("a shadow model's loss is no longer a number", hint="lower the learning rate")
        if config.max_gradient_norm is not None:
            self._clip(config.max_gradient_norm)
        take_step(optimizer)

    def _clip(self, limit: float) -> None:
        """Shorten each network's gradient to ``limit``, as torch's own clipping does for one."""
        gradients = [value.grad for value in self.parameters.values() if value.grad is not None]
        lengths = torch.stack([grad.flatten(1).norm(dim=1) for grad in gradients]).norm(dim=0)
        factor = (limit / (lengths + 1e-6)).clamp(max=1.0)
        for grad in gradients:
            grad.mul_(factor.view(-1, *[1] * (grad.ndim - 1)))
