"""The steps of a training run, one after the other; ``instahide.training`` says what they do and for whom.

Axes: N images, C channels, H rows, W columns, K classes, B images in a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from .augmentation import augment_batch
from .errors import InstaHideError
from .images import ImageSet
from .mixing import to_unit_range
from .models import ImageClassifier
from .training_config import TrainingConfig
from .training_data import batch_bounds, check_fit, generator_of, tensors_of
from .training_device import uses_amp
from .training_optimizer import Descent

if TYPE_CHECKING:
    from .encoded_dataset import EncodedDataset

    TrainingData = EncodedDataset | ImageSet | Callable[[], EncodedDataset | ImageSet]

MakeDescent = Callable[[list[nn.Parameter]], Descent]
CHECK_EVERY = 50  # steps between looks at the loss on a GPU, where each look waits for the device


class DivergedError(InstaHideError):
    """The loss became NaN or infinite; the weights are not to be used."""


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch; ``accuracy`` counts a prediction right when it is the label's largest class."""

    epoch: int
    loss: float
    accuracy: float
    learning_rate: float
    num_examples: int
    seconds: float


@dataclass
class TrainingState:
    """Where a run stands, beside the weights: enough to go on exactly.

    ``epoch`` and ``step`` name the next step to take; ``optimizer`` holds its tensors as
    ``"<parameter index>.<name>"``; ``loss_sum`` and ``num_right`` belong to the epoch under way.
    """

    seed: int
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    num_right: int = 0
    optimizer: dict[str, torch.Tensor] = field(default_factory=dict)


def soft_cross_entropy(
    scores: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float = 0.0
) -> torch.Tensor:
    """−Σ_k t_k log softmax(scores)_k, averaged over the batch; each row of t keeps its sum as its weight.

    ``targets`` are (B, K) floats or (B,) class numbers.
    """
    if targets.ndim == 1:
        return functional.cross_entropy(scores, targets, label_smoothing=label_smoothing)
    if label_smoothing:
        spread = targets.sum(dim=1, keepdim=True) / targets.shape[1]
        targets = (1 - label_smoothing) * targets + label_smoothing * spread
    return functional.cross_entropy(scores, targets)


class Loop:
    """The state of one call of ``train``; ``epochs`` runs it."""

    def __init__(
        self,
        model: nn.Module,
        data: TrainingData,
        config: TrainingConfig,
        device: torch.device,
        start: TrainingState,
        on_step: Callable[[int, int, float], None] | None,
        should_stop: Callable[[], bool] | None,
        descent: MakeDescent,
    ) -> None:
        self.model, self.data, self.config, self.device = model, data, config, device
        self.on_step, self.should_stop = on_step, should_stop
        self.memory_format = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        model.to(device=device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.anchor = [p.detach().clone() for p in self.parameters] if config.proximal_mu else []
        self.descent = descent(self.parameters)
        self.descent.load(start.optimizer)
        self.seed, self.epoch, self.step = start.seed, start.epoch, start.step
        # Sums stay on the device: fetching them every step would make a GPU wait.
        self.loss_sum = torch.tensor(start.loss_sum, dtype=torch.float64, device=device)
        self.num_right = torch.tensor(start.num_right, dtype=torch.int64, device=device)
        self.num_steps = self.num_examples = 0
        self.interrupted = False

    def state(self) -> TrainingState:
        return TrainingState(
            self.seed, self.epoch, self.step, float(self.loss_sum), int(self.num_right), self.descent.state()
        )

    def epochs(self) -> Iterator[EpochRecord]:
        """Run the remaining epochs, one record each."""
        fixed = None if callable(self.data) else self._load(self.data)
        self.model.train()
        whole = False
        try:
            while self.epoch < self.config.epochs and not self.interrupted:
                images, labels = fixed or self._load(self.data())  # type: ignore[operator]
                record = self._run_epoch(images, labels)
                if record is not None:
                    yield record
            whole = not self.interrupted
        finally:
            self.descent.end(interrupted=not whole)
            self.model.eval()

    def _run_epoch(self, images: torch.Tensor, labels: torch.Tensor) -> EpochRecord | None:
        started, N = time.perf_counter(), len(images)
        bounds = batch_bounds(N, self.config.batch_size)
        order = torch.randperm(N, generator=generator_of(self.seed, self.epoch)).to(self.device)
        while self.step < len(bounds):
            if self.should_stop is not None and self.should_stop():
                self.interrupted = True
                return None
            learning_rate = self.descent.begin_step(self.epoch * len(bounds) + self.step, len(bounds))
            first, last = bounds[self.step]
            chosen = order[first:last]
            self._take_step(images[chosen], labels[chosen], len(bounds))
        self._check(self.loss_sum)
        record = EpochRecord(
            epoch=self.epoch,
            loss=float(self.loss_sum) / N,
            accuracy=int(self.num_right) / N,
            learning_rate=learning_rate if bounds else 0.0,
            num_examples=N,
            seconds=time.perf_counter() - started,
        )
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum, self.num_right = torch.zeros_like(self.loss_sum), torch.zeros_like(self.num_right)
        return record

    def _take_step(self, images: torch.Tensor, labels: torch.Tensor, steps_in_epoch: int) -> None:
        if images.dtype == torch.uint8:
            images = to_unit_range(images)
        if self.config.augment:
            images = augment_batch(images, generator=generator_of(self.seed, self.epoch, self.step))
        images = images.contiguous(memory_format=self.memory_format)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=uses_amp(self.config, self.device)):
            scores = self.model(images)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        loss = soft_cross_entropy(scores, labels, label_smoothing=self.config.label_smoothing)
        # A loss that is not a number must not reach the weights; on a GPU the look is less often.
        if self.device.type == "cpu" or self.step % CHECK_EVERY == 0:
            self._check(loss)
        self._update(loss)
        with torch.no_grad():
            classes = labels if labels.ndim == 1 else labels.argmax(dim=1)
            self.loss_sum = self.loss_sum + loss.double() * len(images)
            self.num_right = self.num_right + (scores.argmax(dim=1) == classes).sum()
        self.step += 1
        self.num_steps += 1
        self.num_examples += len(images)
        if self.on_step is not None:
            self.on_step(self.step, steps_in_epoch, float(loss.detach()))

    def _update(self, loss: torch.Tensor) -> None:
        self.descent.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, anchor in zip(self.parameters, self.anchor, strict=False):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=self.config.proximal_mu)
        if self.config.max_gradient_norm is not None:
            self.descent.clip(self.config.max_gradient_norm)
        self.descent.step()

    def _check(self, loss: torch.Tensor) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss became {value} in epoch {self.epoch + 1}, step {self.step + 1}",
                hint=f"lower the learning rate (now {self.descent.rate:g}); "
                "if it is low already, look for images or labels that are not numbers",
            )

    def _load(self, data: EncodedDataset | ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels on the device: uint8 and (N,) integers, or float32 and (N, K)."""
        images, labels = tensors_of(data)
        spec = self.model.spec if isinstance(self.model, ImageClassifier) else None
        if spec is not None:
            check_fit(images, labels, spec.image_shape, spec.num_classes)
        return images.to(self.device), labels.to(self.device)
