"""A pre-activation residual network of any size, 6n + 2 layers (He et al., ECCV 2016).

Stem, three stages of n blocks, normalisation, mean over pixels, one linear layer. A block is
x + conv(relu(norm(conv(relu(norm(x)))))); where the width doubles the shortcut is subsampled and padded with
zeros, so nothing but convolutions has weights. Normalisations have no scale and shift of their own: in Li and
Arora's experiments they are held fixed, for before a convolution they would grow with its weights.

Every convolution is scale invariant, the first of a block alone, stem and second ones together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

Norm = Callable[[int], nn.Module]


def batch_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, affine=False)


class PreActivationResNet(nn.Module):
    """(N, C, H, W) → (N, K). ``depth`` is 6n + 2; raises ValueError for any other."""

    def __init__(
        self,
        *,
        depth: int = 32,
        width: int = 16,
        in_channels: int = 3,
        num_classes: int = 10,
        norm: Norm = batch_norm,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth is {depth}; give 6n + 2: 8, 14, 20, 26, 32, ...")
        num_blocks = depth // 6
        widths = [width] * num_blocks + [2 * width] * num_blocks + [4 * width] * num_blocks
        self.stem = _conv3(in_channels, width)
        pairs = zip([width, *widths], widths, strict=False)
        self.blocks = nn.Sequential(*(_Block(before, after, norm) for before, after in pairs))
        self.norm = norm(4 * width)
        self.head = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = functional.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3))
        scores: torch.Tensor = self.head(features)
        return scores


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.stride, self.extra_channels = (1 if inputs == outputs else 2), outputs - inputs
        self.norm1, self.conv1 = norm(inputs), _conv3(inputs, outputs, self.stride)
        self.norm2, self.conv2 = norm(outputs), _conv3(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.conv1(functional.relu(self.norm1(x)))
        inner = self.conv2(functional.relu(self.norm2(inner)))
        if self.extra_channels:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra_channels))
        total: torch.Tensor = inner + x
        return total


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
