"""Small cases for the tests: smooth 8-bit pictures, networks, and what a server would receive."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from instahide.attacks.update_inversion import LocalTraining, UpdateView, build_network, observe
from instahide.images import ImageSet
from instahide.mixing import to_unit_range

K = 5


def blotches(count: int, *, seed: int, side: int = 12) -> ImageSet:
    """Smooth random pictures of five classes."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, side + 4, side + 4))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(1, 2)).mean(axis=(3, 4))
    return ImageSet((128 + 260 * smooth).clip(0, 255).astype(np.uint8), np.arange(count) % K)


def batch(count: int, *, seed: int = 1, side: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """(images in [-1, 1], one-hot labels)."""
    images = blotches(count, seed=seed, side=side)
    assert images.labels is not None
    return to_unit_range(images.images), torch.eye(K)[torch.from_numpy(images.labels)]


def case(
    name: str, count: int, *, kind: str = "gradient", seed: int = 1, side: int = 12, **plan: Any
) -> tuple[UpdateView, torch.Tensor, torch.Tensor]:
    """(view, images, labels) of ``count`` pictures behind one gradient or update of a named network."""
    images, labels = batch(count, seed=seed, side=side)
    model = build_network(name, image_shape=(1, side, side), num_classes=K)
    public = blotches(200, seed=seed + 100, side=side)
    training = LocalTraining(num_images=count, **plan)
    return observe(model, images, labels, training, kind=kind, public_images=public), images, labels


def errors(recovered: torch.Tensor, truth: torch.Tensor) -> np.ndarray[Any, Any]:
    """Mean square error of each true image under the best one-to-one match."""
    from scipy.optimize import linear_sum_assignment

    table = (truth[:, None].double() - recovered[None].double()).square().flatten(2).mean(-1).numpy()
    rows, columns = linear_sum_assignment(table)
    return np.asarray(table[rows, columns])
