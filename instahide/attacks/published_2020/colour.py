"""The colour step: a map from three channels to three, the same for every pixel of every image.

Axes: n images, C channels, H rows, W columns.

What the objective finds is darker or paler than the image by a curve that is much the same for all
images. The attack of 2020 corrects it with a network of 3 inputs, 10 rectified units and 3 outputs; its
weights were published as numbers, without the data behind them. Here the attacker fits such a map: a
release of public images is attacked with its pairing known (:class:`.own_release.OwnReleases`), and the map
is fitted from what came out to what had gone in, by least squares.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...errors import InvalidInputError

HIDDEN = 10
NUM_STEPS = 600
PIXELS_PER_STEP = 4096
LEARNING_RATE = 0.01


class ColourMap:
    """A fitted map; calling it keeps shapes and gives values in [−1, 1]."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __call__(self, images: NDArray[np.floating]) -> NDArray[np.float32]:
        """(n, C, H, W) → (n, C, H, W)."""
        with torch.inference_mode():
            pixels = _pixels(images)
            mapped = self._network(pixels).clamp(-1, 1)
        n, C, H, W = images.shape
        return np.ascontiguousarray(mapped.view(n, H, W, C).permute(0, 3, 1, 2).numpy())


def fit_colour_map(
    recovered: NDArray[np.floating], originals: NDArray[np.floating], *, seed: int
) -> ColourMap:
    """Fit ``originals`` from ``recovered``, both (n, C, H, W) and in the same order, pixel by pixel."""
    if recovered.shape != originals.shape or recovered.ndim != 4:
        raise InvalidInputError(
            f"recovered images of shape {recovered.shape}, originals {originals.shape}",
            hint="give pairs (n, C, H, W)",
        )
    inputs, targets = _pixels(recovered), _pixels(originals)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        channels = inputs.shape[1]
        network = nn.Sequential(nn.Linear(channels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, channels))
        optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
        for _ in range(NUM_STEPS):
            rows = torch.randint(len(inputs), (PIXELS_PER_STEP,))
            loss = (network(inputs[rows]) - targets[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return ColourMap(network.eval())


def _pixels(images: NDArray[np.floating]) -> torch.Tensor:
    """(n·H·W, C)."""
    values = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    return values.permute(0, 2, 3, 1).reshape(-1, values.shape[1])
