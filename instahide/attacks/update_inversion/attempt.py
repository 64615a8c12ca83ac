"""One restart of an optimising attack, the budget all restarts share, and how they are compared.

Axes: n images, K classes, C H W.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from .view import UpdateView

Progress = Callable[..., None]


@dataclass(frozen=True, eq=False)
class Attempt:
    """What one start ended in.

    Args:
        images: (n, C, H, W).
        labels: (n, K) as used at the end.
        objective: value of what was minimised.
        unexplained: 1 − cos²(g, g*).
        steps: iterations made.
    """

    images: torch.Tensor
    labels: torch.Tensor
    objective: float
    unexplained: float
    steps: int


@dataclass
class Budget:
    """Wall seconds and a place to report to; ``max_seconds=None`` is no limit."""

    max_seconds: float | None = None
    progress: Progress | None = None
    started: float = field(default_factory=time.monotonic)
    ran_out: bool = False

    def spent(self) -> bool:
        """Whether to stop now."""
        if self.max_seconds is not None and time.monotonic() - self.started > self.max_seconds:
            self.ran_out = True
        return self.ran_out

    def report(self, done: int, total: int, text: str) -> None:
        """Tell the watcher."""
        if self.progress is not None:
            self.progress(done, total, text)


def start_images(view: UpdateView, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """(n, C, H, W) normal noise in the box, where optimisation starts."""
    noise = torch.randn(view.num_images, *view.image_shape, generator=generator, dtype=dtype)
    return (0.3 * noise).clamp(-1, 1)


def agreement(first: torch.Tensor, second: torch.Tensor, *, absolute: bool = False) -> float:
    """Mean correlation of two sets of images (n, C, H, W) after one-to-one matching by correlation.

    Restarts that begin from independent noise agree only where the update determines the image.
    """
    from scipy.optimize import linear_sum_assignment

    rows = [_standardised(images.abs() if absolute else images) for images in (first, second)]
    table = rows[0] @ rows[1].T
    left, right = linear_sum_assignment(-table)
    return float(table[left, right].mean())


def _standardised(images: torch.Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    flat = images.detach().double().flatten(1).numpy()
    flat = flat - flat.mean(1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))
