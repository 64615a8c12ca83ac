"""The worst leak of each kind under one defence: four questions, each with its own number.

recovery        mean SSIM of images rebuilt from the released encodings (1: the image itself is handed over)
membership      area under the ROC curve of telling an encoded image from another, from the encodings
model           the same from the trained model
update          mean SSIM of the image rebuilt from one update of one step on one image

Two numbers of one column are comparable; a number of one column says nothing about another. A question that a
defence leaves no material for is answered by ``None``: nothing of the kind leaves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...images import ImageSet
from ..membership import known_image_membership
from ..view import AttackerView
from .data import FrontierData
from .defences import Defence
from .training import TrainedDefence

MAX_CANDIDATES = 300


@dataclass(frozen=True)
class Leak:
    """One number, what it is called, and what an attacker without the material reaches."""

    metric: str
    value: float
    interval: tuple[float, float] | None
    chance: float
    attack: str
    cpu_seconds: float
    details: dict[str, Any] = field(default_factory=dict)


def membership_of_encodings(defence: Defence, trained: TrainedDefence, data: FrontierData) -> Leak | None:
    """AUC of the known-image attack, with published labels."""
    replica = trained.replica
    if replica is None or not defence.encodings_leave:
        return None
    members = data.members.subset(np.arange(min(MAX_CANDIDATES, len(data.members))))
    others = data.others.subset(np.arange(min(MAX_CANDIDATES, len(data.others))))
    assert members.labels is not None
    assert others.labels is not None
    candidates = ImageSet(
        np.concatenate([members.images, others.images]),
        np.concatenate([members.labels, others.labels]),
        members.class_names,
    )
    view = AttackerView.of(
        replica.encoded, ImageSet(data.similar.images), public_pool=data.pool if defence.uses_pool else None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result = known_image_membership(view, candidates, np.arange(len(candidates)) < len(members))
    return Leak(
        "AUC",
        result.metrics["auc"],
        result.intervals["auc"],
        0.5,
        result.name,
        result.cpu_seconds,
        {name: value for name, value in result.metrics.items() if name != "auc"},
    )


def exposure(leak: Leak | None) -> float:
    """A leak on a common scale: 0 is chance (or nothing leaves), 1 is everything.

    (value − chance) / (1 − chance). It orders defences within a column; across columns it is a convention.
    """
    if leak is None:
        return 0.0
    return max(0.0, (leak.value - leak.chance) / (1 - leak.chance))


Question = Callable[[Defence, TrainedDefence, FrontierData], Leak | None]
