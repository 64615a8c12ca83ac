"""The last uncertain signs, by what the eight neighbours and the other colours of a value say.

Axes: N encodings, C channels, H rows, W columns.

The remainder u = z − guide is a mixture of photographs, stationary and smooth: a value given its 3×3 window
in all channels is known to a few per cent of its standard deviation. The best linear prediction is one small
convolution, K, with error variance κ per channel, both from public images. Given posterior means ẑ of the
neighbours, with variances e² − ẑ², the two possible values ±e of z have the odds::

    log P(+)/P(−) = 2·e·c/v,   c = guide + K∗(ẑ − guide),   v = κ·V + K²∗(e² − ẑ²)            (1)

V the variance of u in units of an image's. Iterated with damping from the network's signs. It cannot find
signs from nothing (it stops at the first smooth-looking patchwork) but repairs fine detail.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

RIDGE = 3e-4  # variance of white noise in the windows; without it K amplifies what signs leave open
SAMPLE = 600  # images
STEPS = 4
BLOCK = 256


@dataclass(frozen=True, eq=False)
class LocalPrior:
    """Prediction of a value from its window: kernel (C, C, 3, 3), centre 0; error variances (C, 1, 1)."""

    kernel: torch.Tensor
    error: torch.Tensor

    @classmethod
    def of(cls, images: torch.Tensor) -> LocalPrior:
        """From images (P, C, H, W), centred at their mean image; H, W ≥ 3."""
        C = images.shape[1]
        windows = images[:SAMPLE].unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 9 * C)
        covariance = (windows.T @ windows / len(windows)).double()
        precision = torch.linalg.inv(covariance + RIDGE * torch.eye(9 * C, dtype=torch.float64))
        centres = torch.arange(C) * 9 + 4
        rows = -precision[centres] / precision[centres, centres][:, None]
        rows[torch.arange(C), centres] = 0
        error = 1 / precision[centres, centres]
        return cls(rows.view(C, C, 3, 3).float(), error.float()[:, None, None])

    def repair(
        self, mean: torch.Tensor, magnitudes: torch.Tensor, guide: torch.Tensor, variance: torch.Tensor
    ) -> torch.Tensor:
        """(N, C, H, W) better posterior means by (1); ``variance`` (N,) is V."""
        repaired = [
            self._repair(mean[rows], magnitudes[rows], guide[rows], variance[rows, None, None, None])
            for rows in (slice(first, first + BLOCK) for first in range(0, len(mean), BLOCK))
        ]
        return torch.cat(repaired)

    def _repair(
        self, mean: torch.Tensor, size: torch.Tensor, guide: torch.Tensor, variance: torch.Tensor
    ) -> torch.Tensor:
        # Channels last, where such narrow convolutions are several times faster.
        mean, size, guide = (
            part.contiguous(memory_format=torch.channels_last) for part in (mean, size, guide)
        )
        for _ in range(STEPS):
            centre = guide + functional.conv2d(mean - guide, self.kernel, padding=1)
            open_signs = functional.conv2d(size.square() - mean.square(), self.kernel.square(), padding=1)
            spread = (self.error * variance + open_signs).clamp(min=1e-8)
            mean = 0.5 * mean + 0.5 * size * torch.tanh(size * centre / spread)
        return mean.contiguous()
