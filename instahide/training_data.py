"""What a training loop reads: images and labels as tensors, their order, and whether they fit a model.

Axes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from .errors import InvalidInputError
from .images import ImageSet

if TYPE_CHECKING:
    from .encoded_dataset import EncodedDataset


def tensors_of(data: EncodedDataset | ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, C, H, W) and labels, (N,) integers or (N, K); refused where there are none."""
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


def check_fit(
    images: torch.Tensor, labels: torch.Tensor, image_shape: tuple[int, int, int], num_classes: int
) -> None:
    """Raise InvalidInputError unless a model of this shape and so many classes can train on them."""
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


def batch_bounds(num_images: int, batch_size: int) -> list[tuple[int, int]]:
    """Slices of at most ``batch_size``; a last single image joins the batch before (BatchNorm needs two)."""
    starts = list(range(0, num_images, batch_size))
    if len(starts) > 1 and num_images - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_images], strict=True))


def generator_of(*numbers: int) -> torch.Generator:
    """A generator for one purpose, from (seed, epoch[, step]): nothing to save, nothing to advance."""
    generator = torch.Generator()
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator
