"""What an attacker sees, and what an attack gives back.

Axes: N encodings, C channels, H rows, W columns, K classes, P public images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..encoded_dataset import EncodedDataset
from ..encoder_config import EncoderConfig
from ..errors import InvalidInputError
from ..images import ImageSet


@dataclass(frozen=True, eq=False)
class AttackerView:
    """All an attack may look at: released encodings, the public law, and public images.

    There is no field for private images, coefficients, partners or sign masks; truth needed to
    *score* an attack is given to the scoring function, never to the view.

    Args:
        encodings: (N, C, H, W) float32 as released.
        labels: (N, K) soft labels as released, or ``None`` if labels are withheld.
        config: the published law of the encoder.
        scheme: ``"inside"`` or ``"cross"``.
        public_images: P images of the same kind as the private ones, for statistics.
        public_pool: the pool the public sources were drawn from; ``None``: images like the private ones.
    """

    encodings: torch.Tensor
    labels: torch.Tensor | None
    config: EncoderConfig
    scheme: str
    public_images: ImageSet
    public_pool: ImageSet | None = None

    def __post_init__(self) -> None:
        if tuple(self.encodings.shape[1:]) != self.public_images.image_shape:
            raise InvalidInputError(
                f"encodings are {tuple(self.encodings.shape[1:])}, others {self.public_images.image_shape}",
                hint="resize the public images to the encodings' shape",
            )
        if self.public_pool is not None and self.public_pool.image_shape != self.public_images.image_shape:
            raise InvalidInputError(
                f"the pool is {self.public_pool.image_shape}, others {self.public_images.image_shape}",
                hint="resize the pool to the encodings' shape",
            )
        if len(self.encodings) == 0:
            raise InvalidInputError("there are no encodings to attack", hint="encode at least one image")

    @classmethod
    def of(
        cls,
        encoded: EncodedDataset,
        public_images: ImageSet,
        *,
        public_pool: ImageSet | None = None,
        show_labels: bool = True,
    ) -> AttackerView:
        """The view of someone who was sent ``encoded``; ``show_labels=False`` if labels stayed behind."""
        labels = encoded.labels if show_labels else None
        return cls(encoded.images, labels, encoded.config, encoded.scheme, public_images, public_pool)


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack achieved, at what cost, under which assumptions.

    Args:
        name: of the attack, with its tier where it has tiers.
        metrics: numbers with the field's names; a figure is a lower bound on what leaks.
        intervals: 95 % intervals of the metrics that have one.
        cpu_seconds: processor time, all threads together.
        assumptions: what the attacker is given, one sentence each; nothing else was used.
        settings: what was attacked and how, as plain values.
        scores: one per candidate, higher is likelier a member; stays out of ``to_dict``.
        verdict: one sentence a privacy officer understands, without a number that needs a key.
        leaked: whether the attack got what it wants; ``None``: it could not be decided.
        baselines: the same metrics for an attacker without the release: chance, mean image, ...
        wall_seconds, peak_bytes: the rest of the cost; 0 where it was not measured.
        seed: of the attacker's own random choices; never of an encoder.
        checks: outcomes of the power check (planted canaries) and the null check (noise), in words.
        curves: lines to draw: name → points (x, y); ``curve_axes`` names x and y.
        pictures: (N, C, H, W) uint8 sheets to show, by caption; stay out of ``to_dict``.
    """

    name: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    cpu_seconds: float
    assumptions: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    scores: NDArray[np.float64] | None = field(default=None, repr=False)
    verdict: str = ""
    leaked: bool | None = None
    baselines: dict[str, float] = field(default_factory=dict)
    wall_seconds: float = 0.0
    peak_bytes: int = 0
    seed: int | None = None
    checks: dict[str, str] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    curve_axes: tuple[str, str] = ("", "")
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "leaked": self.leaked,
            "metrics": dict(self.metrics),
            "intervals": {name: list(limits) for name, limits in self.intervals.items()},
            "baselines": dict(self.baselines),
            "cpu_seconds": self.cpu_seconds,
            "wall_seconds": self.wall_seconds,
            "peak_bytes": self.peak_bytes,
            "seed": self.seed,
            "checks": dict(self.checks),
            "curves": {name: [list(point) for point in line] for name, line in self.curves.items()},
            "curve_axes": list(self.curve_axes),
            "assumptions": list(self.assumptions),
            "settings": dict(self.settings),
        }
