"""One training loop for everyone who trains: the command line and the hospital's site worker.

Axes: N images, C channels, H rows, W columns, K classes, B images in a batch.

The loss is soft-label cross-entropy, −Σ_k t_k log p_k averaged over the batch, with t the mixed
label of an encoding (Huang et al. 2020, section 3) or a one-hot row. Rows of t need not sum to one:
in the published cross-data scheme they sum to the private share, which then acts as a weight of
the image. What a run does is fixed by its data, its start weights, its ``TrainingConfig`` and one
number that orders the images; order and augmentation are drawn afresh for each epoch and step from
that number, so a run resumed at any step goes on as if it had never stopped, bit for bit on a CPU.

Data stay in one tensor (8-bit if they came so) and on the training device; there are no loader
processes. An encoder's ``encode_epoch`` may be passed as the data: it is called once an epoch.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from .augmentation import augment_batch
from .errors import InstaHideError, InvalidInputError
from .images import ImageSet
from .light_optimizers import spare_the_compiler, take_step
from .mixing import to_unit_range
from .models import ImageClassifier
from .training_config import TrainingConfig
from .training_device import resolve_device, run_settings, uses_amp

if TYPE_CHECKING:
    from .encoded_dataset import EncodedDataset

    TrainingData = EncodedDataset | ImageSet | Callable[[], EncodedDataset | ImageSet]

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


@dataclass(frozen=True)
class TrainingResult:
    """What ``train`` did; the weights are in the model it was given."""

    history: tuple[EpochRecord, ...]
    state: TrainingState
    num_steps: int
    num_examples: int
    seconds: float
    interrupted: bool


def train(
    model: nn.Module,
    data: TrainingData,
    config: TrainingConfig,
    *,
    resume: TrainingState | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    on_epoch: Callable[[EpochRecord, TrainingState], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    learning_rates: Callable[[int], float] | None = None,
) -> TrainingResult:
    """Train ``model`` in place; it ends on the training device, in evaluation mode.

    Args:
        model: any module from (B, C, H, W) to (B, K); an ``ImageClassifier`` is checked against the data.
        data: encodings, plain labelled images, or a function that gives either, called every epoch.
        resume: the state of an earlier result or checkpoint, with the weights already in ``model``.
        on_step: called with (step in epoch, steps in epoch, loss) after each step.
        on_epoch: called after each epoch, with a state that a checkpoint can keep.
        should_stop: asked before each step; true ends the run with ``interrupted`` set and a state to resume.
        learning_rates: step (from 0 over the run) → learning rate, in place of the config's schedule.

    Raises:
        InvalidInputError: no images, no labels, shapes or classes that do not fit the model; a FedProx
            run (it lasts one round) asked to resume, since the state does not keep where it started.
        DivergedError: the loss is no longer a number.
    """
    started = time.perf_counter()
    if resume is not None and config.proximal_mu:
        raise InvalidInputError("a run with proximal_mu cannot resume", hint="start the round again")
    device = resolve_device(config.device)
    state = resume or TrainingState(
        seed=config.shuffle_seed if config.deterministic else secrets.randbits(63)
    )
    with run_settings(model, config, device):
        loop = _Loop(model, data, config, device, state, on_step, should_stop, learning_rates)
        history = []
        for record in loop.epochs():
            history.append(record)
            if on_epoch is not None:
                on_epoch(record, loop.state())
        return TrainingResult(
            history=tuple(history),
            state=loop.state(),
            num_steps=loop.num_steps,
            num_examples=loop.num_examples,
            seconds=time.perf_counter() - started,
            interrupted=loop.interrupted,
        )


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


class _Loop:
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
        learning_rates: Callable[[int], float] | None,
    ) -> None:
        self.model, self.data, self.config, self.device = model, data, config, device
        self.on_step, self.should_stop, self.learning_rates = on_step, should_stop, learning_rates
        self.memory_format = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        model.to(device=device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.anchor = [p.detach().clone() for p in self.parameters] if config.proximal_mu else []
        spare_the_compiler()
        self.optimizer = _build_optimizer(self.parameters, config)
        _load_optimizer(self.optimizer, start.optimizer)
        self.seed, self.epoch, self.step = start.seed, start.epoch, start.step
        # Sums stay on the device: fetching them every step would make a GPU wait.
        self.loss_sum = torch.tensor(start.loss_sum, dtype=torch.float64, device=device)
        self.num_right = torch.tensor(start.num_right, dtype=torch.int64, device=device)
        self.num_steps = self.num_examples = 0
        self.interrupted = False

    def state(self) -> TrainingState:
        tensors = {
            f"{index}.{name}": value.detach().cpu().clone()
            for index, entry in self.optimizer.state_dict()["state"].items()
            for name, value in entry.items()
            if isinstance(value, torch.Tensor)
        }
        return TrainingState(
            self.seed, self.epoch, self.step, float(self.loss_sum), int(self.num_right), tensors
        )

    def epochs(self) -> Iterator[EpochRecord]:
        """Run the remaining epochs, one record each."""
        fixed = None if callable(self.data) else self._load(self.data)
        self.model.train()
        try:
            while self.epoch < self.config.epochs and not self.interrupted:
                images, labels = fixed or self._load(self.data())  # type: ignore[operator]
                record = self._run_epoch(images, labels)
                if record is not None:
                    yield record
        finally:
            self.model.eval()

    def _run_epoch(self, images: torch.Tensor, labels: torch.Tensor) -> EpochRecord | None:
        started, N = time.perf_counter(), len(images)
        bounds = _batch_bounds(N, self.config.batch_size)
        order = torch.randperm(N, generator=_generator(self.seed, self.epoch)).to(self.device)
        while self.step < len(bounds):
            if self.should_stop is not None and self.should_stop():
                self.interrupted = True
                return None
            learning_rate = self._set_learning_rate(len(bounds))
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
            images = augment_batch(images, generator=_generator(self.seed, self.epoch, self.step))
        images = images.contiguous(memory_format=self.memory_format)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=uses_amp(self.config, self.device)):
            scores = self.model(images)
        loss = soft_cross_entropy(scores.float(), labels, label_smoothing=self.config.label_smoothing)
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
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, anchor in zip(self.parameters, self.anchor, strict=False):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=self.config.proximal_mu)
        if self.config.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.config.max_gradient_norm)
        take_step(self.optimizer)

    def _set_learning_rate(self, steps_per_epoch: int) -> float:
        step = self.epoch * steps_per_epoch + self.step
        if self.learning_rates is not None:
            rate = float(self.learning_rates(step))
        else:
            rate = self.config.learning_rate_at(step, steps_per_epoch=steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _check(self, loss: torch.Tensor) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss became {value} in epoch {self.epoch + 1}, step {self.step + 1}",
                hint=f"lower the learning rate (now {self.optimizer.param_groups[0]['lr']:g}); "
                "if it is low already, look for images or labels that are not numbers",
            )

    def _load(self, data: EncodedDataset | ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels on the device: uint8 and (N,) integers, or float32 and (N, K)."""
        images, labels = _tensors(data)
        spec = self.model.spec if isinstance(self.model, ImageClassifier) else None
        if spec is not None:
            _check_fit(images, labels, spec.image_shape, spec.num_classes)
        return images.to(self.device), labels.to(self.device)


def _tensors(data: EncodedDataset | ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(data, ImageSet):
        if data.labels is None:
            raise InvalidInputError(
                "the images have no labels", hint="training needs a label for every image"
            )
        pixels = data.images if data.images.flags.writeable else data.images.copy()  # torch wants it so
        images, labels = torch.from_numpy(pixels), torch.from_numpy(data.labels)
    else:
        images, labels = data.images, data.labels
    if len(images) == 0:
        raise InvalidInputError("there are no images to train on", hint="check the folder and its filter")
    return images, labels


def _check_fit(
    images: torch.Tensor, labels: torch.Tensor, image_shape: tuple[int, int, int], num_classes: int
) -> None:
    if tuple(images.shape[1:]) != image_shape:
        raise InvalidInputError(
            f"images are {tuple(images.shape[1:])}, but the model takes {image_shape}",
            hint="build the model with image_shape=data.image_shape",
        )
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    if classes > num_classes or (labels.ndim == 2 and classes != num_classes):
        raise InvalidInputError(
            f"the labels have {classes} classes, the model {num_classes}",
            hint="build the model with num_classes=data.num_classes",
        )


def _batch_bounds(num_images: int, batch_size: int) -> list[tuple[int, int]]:
    """Slices of at most ``batch_size``; a last single image joins the batch before (BatchNorm needs two)."""
    starts = list(range(0, num_images, batch_size))
    if len(starts) > 1 and num_images - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_images], strict=True))


def _generator(*numbers: int) -> torch.Generator:
    """A generator for one purpose, from (seed, epoch[, step]): nothing to save, nothing to advance."""
    generator = torch.Generator()
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator


def _build_optimizer(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
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


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    if not tensors:
        return
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
