"""What the decode tier is given, and what it gives back.

Axes: N encodings, n private images, k sources, C H W of an image.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ...encoder_config import EncoderConfig
from ...errors import InvalidInputError
from ...images import ImageSet
from .sign_recovery import SignNetwork

EVIDENCE_BAR = 5.0  # of a z-score: noise passes with chance 3e-7


@dataclass(frozen=True, eq=False)
class DecodeView:
    """What the decode tier is given.

    Args:
        encodings: (N, C, H, W) float as released.
        private_rows: (N, k_priv) rows 0..n-1 of the private images inside.
        private_coefficients: (N, k_priv) their coefficients λ (of the whole mixture, whose λ sum to 1).
        num_images: n.
        public_images: images of the same kind as the private ones, for statistics and training.
        config: the published law.
        scheme: ``"inside"`` (all sources private) or ``"cross"``.
        public_pool: the pool of the public sources, or what is believed to be it; ``None``: unknown.
    """

    encodings: torch.Tensor
    private_rows: NDArray[np.int64]
    private_coefficients: NDArray[np.floating]
    num_images: int
    public_images: ImageSet
    config: EncoderConfig
    scheme: str = "cross"
    public_pool: ImageSet | None = None

    def __post_init__(self) -> None:
        if self.encodings.ndim != 4 or len(self.encodings) == 0:
            raise InvalidInputError(
                f"encodings have shape {tuple(self.encodings.shape)}", hint="give (N, C, H, W), N ≥ 1"
            )
        if not bool(torch.isfinite(self.encodings).all()):
            raise InvalidInputError("encodings are not all finite numbers", hint="check the file")
        shape = self.private_rows.shape
        if shape != self.private_coefficients.shape or len(shape) != 2 or shape[0] != len(self.encodings):
            raise InvalidInputError(
                f"private_rows {shape} and private_coefficients {self.private_coefficients.shape} for "
                f"{len(self.encodings)} encodings",
                hint="give one row of each per encoding",
            )
        if self.private_rows.min() < 0 or self.private_rows.max() >= self.num_images:
            raise InvalidInputError(
                f"private_rows are outside 0..{self.num_images - 1}", hint="check num_images"
            )
        for name, images in (("public images", self.public_images), ("pool", self.public_pool)):
            if images is not None and images.image_shape != tuple(self.encodings.shape[1:]):
                raise InvalidInputError(
                    f"the {name} are {images.image_shape}, encodings {tuple(self.encodings.shape[1:])}",
                    hint="resize them to the encodings' shape",
                )


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """What :func:`.decode.decode_images` found.

    Args:
        images: (n, C, H, W) float32 in [-1, 1].
        mixtures: (N, C, H, W) posterior means of the signed mixtures.
        confidence: (N,) share of a mixture's magnitude whose sign is settled.
        public_rows: (N, k − k_priv) rows of the pool found in each encoding, −1 where none.
        public_coefficients: their coefficients.
        sign_log_odds: log odds of all rows' signs together.
        network: the sign network used; hand it to the next call under the same law.
        evidence: z-score of the agreement of rows that share images against the same under a shuffled
            pairing; near 0 if the encodings do not hold what the pairing says.
        diagnostics: numbers about the run.
    """

    images: torch.Tensor
    mixtures: torch.Tensor = field(repr=False)
    confidence: torch.Tensor = field(repr=False)
    public_rows: NDArray[np.int64] = field(repr=False)
    public_coefficients: NDArray[np.float32] = field(repr=False)
    sign_log_odds: float
    network: SignNetwork | None = field(repr=False)
    evidence: float
    diagnostics: dict[str, float]

    @property
    def recovered(self) -> bool:
        """Whether there is anything of the private images in ``images``: ``evidence`` above 5."""
        return self.evidence > EVIDENCE_BAR
