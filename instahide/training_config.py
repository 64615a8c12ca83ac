"""TrainingConfig: every choice of a training run that does not belong to the model, checked once.

The same frozen object serves ``instahide train`` and the hospital's site worker.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import InvalidInputError

OPTIMIZERS = ("sgd", "adamw")
EXPONENTIAL_EQUIVALENT = "exponential-equivalent"
ORIGINAL_SCHEDULES = ("constant", "step", "cosine", "exponential")
LR_SCHEDULES = (*ORIGINAL_SCHEDULES, EXPONENTIAL_EQUIVALENT)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Args:
        epochs: passes over the data.
        batch_size: images per step.
        learning_rate: at the first step.
        momentum: of SGD (ignored by AdamW).
        weight_decay: L2 coefficient (SGD) or decoupled decay (AdamW).
        optimizer: ``"sgd"`` or ``"adamw"``.
        lr_schedule: ``"constant"``; ``"step"``: divided by 10 after half and after three quarters of
            the run (the published InstaHide schedule: 100 and 150 of 200); ``"cosine"``: to zero;
            ``"exponential"``: times ``learning_rate_decay`` every epoch; ``"exponential-equivalent"``: a
            growing rate without weight decay that computes the same functions as ``equivalent_to`` with it
            (Li and Arora 2020), on models with normalisation.
        equivalent_to: the schedule that ``"exponential-equivalent"`` is equivalent to.
        learning_rate_decay: factor per epoch of the exponential schedule.
        proximal_mu: FedProx (Li et al. 2020): adds mu/2 · |w − w_start|² to the loss.
        label_smoothing: share of each label spread evenly over the classes, [0, 1).
        max_gradient_norm: gradients longer than this are shortened to it; ``None`` for no limit.
        augment: random crop and flip of every batch.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        deterministic: the same result for the same data, weights and ``shuffle_seed``, bit for bit
            on one machine.
        shuffle_seed: order of the images and augmentation in deterministic runs. Not a secret, and
            never used by the encoder.
        amp: half-precision arithmetic on a GPU that has bfloat16; no effect on a CPU.
        num_threads: CPU threads; ``None`` leaves large models alone, and gives few to small ones.

    Raises:
        InvalidInputError: a value outside its range, named.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    lr_schedule: str = "cosine"
    equivalent_to: str = "step"
    learning_rate_decay: float = 0.95
    proximal_mu: float = 0.0
    label_smoothing: float = 0.0
    max_gradient_norm: float | None = 5.0
    augment: bool = False
    device: str = "auto"
    deterministic: bool = False
    shuffle_seed: int = 0
    amp: bool = True
    num_threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            _require(name, getattr(self, name), _is_count(getattr(self, name)), "a whole number, 1 or more")
        _require(
            "num_threads",
            self.num_threads,
            self.num_threads is None or _is_count(self.num_threads),
            "1 or more",
        )
        _require("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "above 0")
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        _require("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        _require(
            "learning_rate_decay", self.learning_rate_decay, 0 < self.learning_rate_decay <= 2, "in (0, 2]"
        )
        _require("proximal_mu", self.proximal_mu, 0 <= self.proximal_mu < math.inf, "0 or more")
        _require("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "in [0, 1)")
        limit = self.max_gradient_norm
        _require("max_gradient_norm", limit, limit is None or 0 < limit < math.inf, "above 0, or none")
        _require("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, " or ".join(OPTIMIZERS))
        _require("lr_schedule", self.lr_schedule, self.lr_schedule in LR_SCHEDULES, " or ".join(LR_SCHEDULES))
        _require(
            "equivalent_to",
            self.equivalent_to,
            self.equivalent_to in ORIGINAL_SCHEDULES,
            " or ".join(ORIGINAL_SCHEDULES),
        )
        if self.lr_schedule == EXPONENTIAL_EQUIVALENT:
            self._check_equivalent()
        _require("shuffle_seed", self.shuffle_seed, 0 <= self.shuffle_seed < 2**63, "in [0, 2^63)")

    def _check_equivalent(self) -> None:
        if self.weight_decay == 0:
            raise InvalidInputError(
                "exponential-equivalent trades weight decay for a growing rate, and weight_decay is 0",
                hint=f"set weight_decay, or use lr_schedule {self.equivalent_to!r}: it would be the same run",
            )
        if self.proximal_mu:
            raise InvalidInputError(
                "exponential-equivalent with proximal_mu: FedProx's term in the loss feels the weights' size",
                hint="set proximal_mu to 0, or use another lr_schedule",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """The config that ``to_dict`` wrote; unknown keys are refused by name."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise InvalidInputError(
                f"unknown training setting {unknown[0]!r}", hint="was the file written by a newer version?"
            )
        return cls(**values)

    def learning_rate_at(self, step: int, *, steps_per_epoch: int) -> float:
        """The learning rate of ``step`` (counted from 0 over the whole run).

        Under ``"exponential-equivalent"`` that of the schedule it is equivalent to.
        """
        equivalent = self.lr_schedule == EXPONENTIAL_EQUIVALENT
        schedule = self.equivalent_to if equivalent else self.lr_schedule
        progress = step / (steps_per_epoch * self.epochs)
        if schedule == "step":
            factor = 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
        elif schedule == "cosine":
            factor = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        elif schedule == "exponential":
            factor = self.learning_rate_decay ** (step // steps_per_epoch)
        else:
            factor = 1.0
        return self.learning_rate * factor

    def largest_learning_rate(self) -> float:
        """Over the whole run, of ``learning_rate_at``."""
        return max(self.learning_rate, self.learning_rate_at(self.epochs - 1, steps_per_epoch=1))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _require(name: str, value: Any, holds: bool, allowed: str) -> None:
    if not holds:  # comparisons with NaN are false, so NaN is refused here too
        raise InvalidInputError(f"{name} is {value!r}", hint=f"{name} must be {allowed}")
