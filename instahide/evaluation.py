"""Accuracy in three inference modes, never mixed up.

Axes: N images, C channels, H rows, W columns, K classes, V encoded views of a query.

========================  ==================================================================
mode                      what the model is asked with
========================  ==================================================================
``plain``                 the image itself. Published InstaHide accuracies are of this kind:
                          the query is *not* hidden from whoever runs the model
``encoded_once``          one encoding of the query. Hides as much as InstaHide hides, and costs
                          most: 54 % on CIFAR-10 in the ScrambleMix study (PSIVT 2023)
``encoded_average``       the mean softmax over V fresh encodings (ten by default; 95 % there).
                          What helps the model helps an attacker: these are V releases of
                          one image
========================  ==================================================================

A mode that was not measured is ``None``, not zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .errors import InvalidInputError
from .images import ImageSet
from .mixing import to_unit_range

if TYPE_CHECKING:
    from .encoder import Encoder

Z_95 = 1.959963984540054  # the 97.5 % point of the normal law


@dataclass(frozen=True)
class ModeReport:
    """How well one inference mode does on N images.

    ``accuracy_interval`` is Wilson's 95 % interval: it speaks of other images from the same source,
    not of another hospital. ``per_class_recall`` has ``None`` for a class without test images, and
    ``balanced_accuracy`` is the mean over the others. ``auc`` (two classes only) is the chance that
    a random image of class 1 scores above a random one of class 0.
    """

    num_images: int
    num_views: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    loss: float
    per_class_recall: tuple[float | None, ...]
    balanced_accuracy: float
    auc: float | None


@dataclass(frozen=True)
class EvaluationReport:
    """The three inference modes; ``None`` means not measured (no encoder was given)."""

    plain: ModeReport
    encoded_once: ModeReport | None = None
    encoded_average: ModeReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @property
    def modes(self) -> dict[str, ModeReport | None]:
        """Human names in the order to show them."""
        views = self.encoded_average.num_views if self.encoded_average else 10
        return {
            "plain query": self.plain,
            "one encoded view": self.encoded_once,
            f"average of {views} encoded views": self.encoded_average,
        }


def evaluate(
    model: nn.Module,
    images: ImageSet,
    *,
    encoder: Encoder | None = None,
    num_views: int = 10,
    batch_size: int = 256,
) -> EvaluationReport:
    """Measure ``model`` on labelled plain images, in every mode that can be measured.

    Args:
        model: (B, C, H, W) in [-1, 1] to (B, K), on any device.
        encoder: makes the encoded queries; without one only ``plain`` is measured.
        num_views: V of the averaged mode; its first view is the "one encoded view".
        batch_size: images at a time; memory is O(V · batch_size).

    Raises:
        InvalidInputError: no images, no labels, or ``num_views`` below 1.
    """
    if images.labels is None or len(images) == 0:
        raise InvalidInputError("evaluation needs labelled images", hint="give a test set with labels")
    if num_views < 1:
        raise InvalidInputError(f"num_views is {num_views}", hint="use 1 or more; 10 is customary")
    asked: list[Callable[[ImageSet], torch.Tensor]] = [lambda batch: to_unit_range(batch.images)[None]]
    if encoder is not None:
        asked.append(lambda batch: encoder.encode_views(batch, num_views))
    probabilities = [_probabilities(model, images, queries, batch_size) for queries in asked]
    labels = images.labels
    plain = _report(probabilities[0].mean(0), labels, 1)
    if encoder is None:
        return EvaluationReport(plain)
    views = probabilities[1]
    return EvaluationReport(plain, _report(views[0], labels, 1), _report(views.mean(0), labels, num_views))


def wilson_interval(successes: int, trials: int, *, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927); honest near 0 and 1, unlike ± z·σ."""
    if not 0 <= successes <= trials or trials < 1:
        raise InvalidInputError(f"{successes} successes in {trials} trials", hint="0 <= successes <= trials")
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    # The limits at 0 and 1 are exact; rounding must not push them outside.
    return max(0.0, centre - half), min(1.0, centre + half)


def _probabilities(
    model: nn.Module, images: ImageSet, queries: Callable[[ImageSet], torch.Tensor], batch_size: int
) -> NDArray[np.float64]:
    """Softmax outputs, (V, N, K)."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    parts = []
    try:
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                batch = images.subset(np.arange(start, min(start + batch_size, len(images))))
                views = queries(batch)
                scores = model(views.flatten(0, 1).to(device)).double().softmax(dim=1)
                parts.append(scores.unflatten(0, views.shape[:2]).cpu().numpy())
    finally:
        model.train(was_training)
    return np.concatenate(parts, axis=1)


def _report(probabilities: NDArray[np.float64], labels: NDArray[np.int64], num_views: int) -> ModeReport:
    N, K = probabilities.shape
    if int(labels.max()) >= K:
        raise InvalidInputError(
            f"label {int(labels.max())} in the test set, but the model knows {K} classes",
            hint="train and test on the same list of classes",
        )
    right = probabilities.argmax(axis=1) == labels
    recall = tuple(float(right[labels == k].mean()) if (labels == k).any() else None for k in range(K))
    seen = [value for value in recall if value is not None]
    likelihood = probabilities[np.arange(N), labels]
    return ModeReport(
        num_images=N,
        num_views=num_views,
        accuracy=float(right.mean()),
        accuracy_interval=wilson_interval(int(right.sum()), N),
        loss=float(-np.log(np.maximum(likelihood, 1e-12)).mean()),
        per_class_recall=recall,
        balanced_accuracy=float(np.mean(seen)),
        auc=_binary_auc(probabilities[:, 1], labels) if K == 2 else None,
    )


def _binary_auc(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float | None:
    from scipy.stats import rankdata

    positives = labels == 1
    num_positive, num_negative = int(positives.sum()), int((~positives).sum())
    if not num_positive or not num_negative:
        return None
    ranks = rankdata(scores)  # ties share their mean rank, which counts each tie as one half
    wins = ranks[positives].sum() - num_positive * (num_positive + 1) / 2
    return float(wins / (num_positive * num_negative))
