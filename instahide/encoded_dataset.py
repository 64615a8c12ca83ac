"""EncodedDataset: what leaves the encoder. Images, soft labels, and the public law; no secret.

Axes: N rows, K classes, C channels, H rows and W columns of pixels.

There is no field for coefficients, sources or sign masks, and no room to add one, so they
cannot be saved, logged or sent by mistake.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .encoder_config import EncoderConfig
from .errors import InvalidInputError

SCHEMES = ("inside", "cross")


@dataclass(frozen=True, slots=True, eq=False)
class EncodedDataset:
    """Encoded images with their soft labels.

    Args:
        images: float32 ``(N, C, H, W)`` in [-1, 1].
        labels: float32 ``(N, K)``, not negative; rows sum to 1, in ``compat`` mode to the sum of the
            private coefficients.
        class_names: K names.
        config: the law the encoder followed.
        scheme: ``"inside"`` (all sources private) or ``"cross"`` (some from a public pool).

    Raises:
        InvalidInputError: shapes or types that do not fit together.
    """

    images: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    class_names: tuple[str, ...]
    config: EncoderConfig
    scheme: str

    def __post_init__(self) -> None:
        _check_tensor("images", self.images, 4, "(N, C, H, W)")
        _check_tensor("labels", self.labels, 2, "(N, K)")
        if len(self.images) != len(self.labels):
            raise InvalidInputError(
                f"{len(self.images)} encoded images but {len(self.labels)} rows of labels",
                hint="one row of labels belongs to each image",
            )
        if self.labels.shape[1] != len(self.class_names):
            raise InvalidInputError(
                f"labels have {self.labels.shape[1]} columns for {len(self.class_names)} class names",
                hint="one column belongs to each class",
            )
        if self.scheme not in SCHEMES:
            raise InvalidInputError(f"scheme is {self.scheme!r}", hint=f"use one of {', '.join(SCHEMES)}")

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return int(channels), int(height), int(width)


def _check_tensor(name: str, tensor: torch.Tensor, rank: int, axes: str) -> None:
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != rank or tensor.dtype != torch.float32:
        found = (
            f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            if isinstance(tensor, torch.Tensor)
            else type(tensor)
        )
        raise InvalidInputError(f"{name} are {found}", hint=f"a float32 tensor {axes} is expected")
