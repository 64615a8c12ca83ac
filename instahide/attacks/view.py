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

    ``intervals`` hold 95 % intervals of the metrics that have one; ``scores`` (one per candidate,
    higher is likelier a member) stay out of ``to_dict``.
    """

    name: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    cpu_seconds: float
    assumptions: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    scores: NDArray[np.float64] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "metrics": dict(self.metrics),
            "intervals": {name: list(limits) for name, limits in self.intervals.items()},
            "cpu_seconds": self.cpu_seconds,
            "assumptions": list(self.assumptions),
            "settings": dict(self.settings),
        }
