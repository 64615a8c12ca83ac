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

import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from .errors import InvalidInputError
from .models import ImageClassifier, ModelSpec
from .training_config import EXPONENTIAL_EQUIVALENT, TrainingConfig
from .training_device import resolve_device, run_settings
from .training_loop import DivergedError, EpochRecord, Loop, TrainingState, soft_cross_entropy
from .training_optimizer import Descent, Rates

if TYPE_CHECKING:  # the theory is loaded by the runs that ask for it
    from theory_modules.exponential_lr import ExponentialEquivalentLR, ScaleInvarianceReport

    from .training_loop import TrainingData

__all__ = [
    "DivergedError",
    "EpochRecord",
    "TrainingResult",
    "TrainingState",
    "soft_cross_entropy",
    "train",
]


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
        learning_rates: step (from 0 over the run) → learning rate, in place of the config's schedule; under
            ``exponential-equivalent`` of the schedule with weight decay that the run is equivalent to.

    Raises:
        InvalidInputError: no images, no labels, shapes or classes that do not fit the model; a FedProx
            run (it lasts one round) asked to resume, since the state does not keep where it started;
            ``exponential-equivalent`` where no equivalent run exists.
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
        loop = Loop(
            model,
            data,
            config,
            device,
            state,
            on_step,
            should_stop,
            lambda parameters: descent_for(model, parameters, config, learning_rates),
        )
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


def descent_for(
    model: nn.Module,
    parameters: list[nn.Parameter],
    config: TrainingConfig,
    learning_rates: Callable[[int], float] | None = None,
) -> Descent:
    """The optimiser of ``config`` and what moves its rate: the config's schedule, or ``learning_rates``."""

    def rates(step: int, steps_per_epoch: int) -> float:
        if learning_rates is not None:
            return float(learning_rates(step))
        return config.learning_rate_at(step, steps_per_epoch=steps_per_epoch)

    if config.lr_schedule == EXPONENTIAL_EQUIVALENT:
        return EquivalentDescent(model, parameters, config, rates)
    return Descent(parameters, config, rates)


class EquivalentDescent(Descent):
    """No weight decay where weights' scale does not matter, and a growing rate: the same functions.

    Li and Arora 2020; ``theory_modules.exponential_lr`` has the statement and does the work. Weights begin
    and end a call of ``train`` at the scale of the run with weight decay, so they can be averaged, saved and
    evaluated like any others. In between, and in checkpoints, they are P times as large.

    Raises InvalidInputError where no equivalent run exists: a model without normalisation, or weight decay
    times rate beyond what the momentum allows.
    """

    def __init__(
        self, model: nn.Module, parameters: list[nn.Parameter], config: TrainingConfig, rates: Rates
    ) -> None:
        from theory_modules.exponential_lr import equivalent_parameter_groups, exponential_lr_equivalent

        if not isinstance(model, ImageClassifier):
            raise InvalidInputError(
                "exponential-equivalent needs a model of build_model, whose layers it knows how to scale",
                hint="use theory_modules.exponential_lr with a model of your own",
            )
        with _in_our_words():
            self._report = _report_of(model)
            groups = equivalent_parameter_groups(model, self._report)
            exponential_lr_equivalent(  # refuses weight decay that no growing rate is equivalent to
                config.largest_learning_rate(),
                0.0 if config.optimizer == "adamw" else config.momentum,
                config.weight_decay,
                optimizer=config.optimizer,
            )
        super().__init__(parameters, config, rates, groups=groups)
        self._model = model
        self._scheduler: ExponentialEquivalentLR | None = None
        self._first_step = self._steps_per_epoch = 0

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        marks = {name: float(value) for name, value in tensors.items() if name.startswith(_MARK)}
        super().load({name: value for name, value in tensors.items() if name not in marks})
        if not marks:
            return
        scheduler = self._start(int(marks[_MARK + "first_step"]), int(marks[_MARK + "steps_per_epoch"]))
        last, shift = int(marks[_MARK + "steps_taken"]), int(marks[_MARK + "shift"])
        with _in_our_words():
            scheduler.load_state_dict({"last_epoch": last, "step_count": last + 1, "shift": shift})
        if scheduler.current.before.scale.log2() != marks[_MARK + "log2_scale"]:
            raise InvalidInputError(
                "the run to resume had another schedule, so its weights have another scale",
                hint="resume with the options it was started with, its epochs included",
            )

    def begin_step(self, step: int, steps_per_epoch: int) -> float:
        scheduler = self._scheduler or self._start(step, steps_per_epoch)
        if steps_per_epoch != self._steps_per_epoch:
            raise InvalidInputError(
                f"an epoch of {steps_per_epoch} steps in a run of {self._steps_per_epoch} an epoch",
                hint="an equivalent schedule needs as many images in every epoch; choose another lr-schedule",
            )
        rate = scheduler.current.learning_rate
        self.rate = rate.value() if rate.log2() < sys.float_info.max_exp - 1 else sys.float_info.max
        return self.rate

    def gradient_scales(self) -> list[float]:
        if self._scheduler is None:
            return super().gradient_scales()
        groups = zip(self.optimizer.param_groups, self._scheduler.gradient_scales(), strict=True)
        by_parameter = {id(parameter): scale for group, scale in groups for parameter in group["params"]}
        return [by_parameter[id(parameter)] for parameter in self.parameters]

    def clip(self, max_norm: float) -> None:
        assert self._scheduler is not None
        self._scheduler.clip_grad_norm_(max_norm)

    def step(self) -> None:
        assert self._scheduler is not None
        super().step()
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # what torch's own wrapper would note
        with _in_our_words():
            self._scheduler.step()

    def end(self, *, interrupted: bool) -> None:
        if self._scheduler is None:
            return
        if interrupted:
            self._scheduler.suspend_()
            return
        self._scheduler.restore_original_scale_()
        self._scheduler = None

    def state(self) -> dict[str, torch.Tensor]:
        tensors = super().state()
        if self._scheduler is None:
            return tensors
        marks = {
            "first_step": self._first_step,
            "steps_per_epoch": self._steps_per_epoch,
            "steps_taken": self._scheduler.last_epoch,
            "shift": self._scheduler.state_dict()["shift"],
            "log2_scale": self._scheduler.current.before.scale.log2(),
        }
        return tensors | {
            _MARK + name: torch.tensor(value, dtype=torch.float64) for name, value in marks.items()
        }

    def _start(self, first_step: int, steps_per_epoch: int) -> ExponentialEquivalentLR:
        """From a step at which the weights are those of the run with weight decay."""
        from theory_modules.exponential_lr import EquivalentSchedule, ExponentialEquivalentLR

        self._first_step, self._steps_per_epoch = first_step, steps_per_epoch
        schedule = EquivalentSchedule(
            lr=lambda step: self.rates(step, steps_per_epoch),
            momentum=0.0 if self.config.optimizer == "adamw" else self.config.momentum,
            weight_decay=self.config.weight_decay,
            optimizer=self.config.optimizer,
            first_step=first_step,
        )
        with _in_our_words():
            for group in self.optimizer.param_groups:
                group["lr"] = schedule.original(0).learning_rate
            self._scheduler = ExponentialEquivalentLR(self.optimizer, schedule, self._model, self._report)
        return self._scheduler


_MARK = "schedule."
_REPORTS: dict[tuple[ModelSpec, frozenset[str]], ScaleInvarianceReport] = {}


def _report_of(model: ImageClassifier) -> ScaleInvarianceReport:
    """Which tensors convert: a fact of the architecture, found once (half a minute for resnet18)."""
    from theory_modules.exponential_lr import scale_invariance_report

    trained = frozenset(name for name, value in model.named_parameters() if value.requires_grad)
    key = (model.spec, trained)
    if key not in _REPORTS:
        _REPORTS[key] = scale_invariance_report(model, torch.zeros(4, *model.spec.image_shape))
    return _REPORTS[key]


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Refusals of the theory modules, whose hint is the message's last line, as ours."""
    try:
        yield
    except InvalidInputError:
        raise
    except ValueError as error:
        message, _, hint = str(error).partition("\nhint: ")
        raise InvalidInputError(
            f"exponential-equivalent: {message}", hint=hint.split("\n")[0] or "choose another lr-schedule"
        ) from error
