"""What a request asks of a model, in the words of ``instahide``: how to train it, how to measure it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from instahide.encoder import Encoder
from instahide.errors import InvalidInputError
from instahide.evaluation import evaluate
from instahide.images import ImageSet
from instahide.models import ImageClassifier
from instahide.training_config import TrainingConfig

from ..config import EXPONENTIAL_EQUIVALENT
from ..messages import RoundRequest


def measure(
    model: ImageClassifier, test: ImageSet, encoder: Encoder | None, num_views: int
) -> dict[str, int | float]:
    """Accuracy and loss of the three inference modes under the protocol's names; plain without encoder."""
    report = evaluate(model, test, encoder=encoder, num_views=num_views)
    metrics: dict[str, int | float] = {"evaluate-num-examples": report.plain.num_images}
    modes = {"plain": report.plain, "one-view": report.encoded_once, "ten-views": report.encoded_average}
    for name, mode in modes.items():
        if mode is not None:
            metrics[f"evaluate-accuracy-{name}"] = mode.accuracy
            metrics[f"evaluate-loss-{name}"] = mode.loss
    return metrics


def training_config(request: RoundRequest, *, device: str, threads: int) -> TrainingConfig:
    """One round's training as the site's loop wants it."""
    return TrainingConfig(
        epochs=request.local_epochs,
        batch_size=request.batch_size,
        learning_rate=request.learning_rate,
        momentum=request.momentum,
        weight_decay=request.weight_decay,
        optimizer=request.optimizer,
        lr_schedule=EXPONENTIAL_EQUIVALENT if _is_equivalent(request) else "constant",
        proximal_mu=request.proximal_mu,
        device=device,
        num_threads=threads,
    )


def learning_rates(request: RoundRequest, num_examples: int) -> Callable[[int], float]:
    """Step of this round → learning rate: the schedule runs over all rounds, not anew in each.

    For ``exponential-equivalent`` these are the rates of the run with weight decay. Each round is converted
    by itself: it begins and ends with weights at that run's scale, so sites that took different numbers of
    steps are averaged like any others, and the whole run's functions are those of the original.
    """
    whole_run = TrainingConfig(
        epochs=request.local_epochs * request.num_server_rounds,
        learning_rate=request.learning_rate,
        lr_schedule=request.equivalent_to if _is_equivalent(request) else request.lr_schedule,
    )
    steps_per_epoch = max(1, math.ceil(num_examples / request.batch_size))
    before = (request.server_round - 1) * request.local_epochs * steps_per_epoch
    return lambda step: whole_run.learning_rate_at(before + step, steps_per_epoch=steps_per_epoch)


def _is_equivalent(request: RoundRequest) -> bool:
    return request.lr_schedule == EXPONENTIAL_EQUIVALENT


def check_finite(metrics: Mapping[str, int | float]) -> None:
    """Raise InvalidInputError for a figure that is not finite: training diverged."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise InvalidInputError(f"{name} is {value}: training diverged", hint="lower learning-rate")
