"""Two networks that score pairs of magnitudes: the published kind, and one for processors.

Axes: B pairs or rows, P patches, C channels, H rows, W columns, p prototypes of a set.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...errors import InvalidInputError

TOWER_WIDTH = 64
TOWER_DEPTH = 4
FEATURES = 16  # per place of the half-size grid
PATCHES = 4  # on each side: P = 16
BASE_WIDTH = 16


def normalised(magnitudes: torch.Tensor) -> torch.Tensor:
    """Each magnitude (..., C, H, W) over its root mean square: the contrast of a mixture tells nothing."""
    scale = magnitudes.square().mean(dim=(-3, -2, -1), keepdim=True).sqrt().clamp(min=1e-6)
    return magnitudes / scale


class TowerPairs(nn.Module):
    """Equation (1) of :mod:`.pair_network`: features of either side, compared patch by patch."""

    def __init__(self, channels: int, num_prototypes: int = 1) -> None:
        super().__init__()
        self.num_prototypes = num_prototypes
        self.tower = _Tower(channels)
        self.prototype_tower = self.tower if num_prototypes == 1 else _Tower(channels * num_prototypes)
        self.linear = nn.Parameter(torch.tensor(0.1))
        self.even = nn.Parameter(torch.tensor(0.3))
        self.bias = nn.Parameter(torch.tensor(-0.3 * PATCHES**2))  # a score of 0 without agreement

    def features(self, magnitudes: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → (P, B, values of a patch)."""
        return _by_patch(self.tower(normalised(magnitudes)))

    def prototype_features(self, prototypes: torch.Tensor) -> torch.Tensor:
        """(B, p, C, H, W) → (P, B, values of a patch)."""
        if prototypes.shape[1] != self.num_prototypes:
            raise InvalidInputError(
                f"{prototypes.shape[1]} prototypes for a network of {self.num_prototypes}",
                hint="train one for this number",
            )
        return _by_patch(self.prototype_tower(normalised(prototypes).flatten(1, 2)))

    def table(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """(A, B) scores of features (P, A, ·) and (P, B, ·)."""
        total = self.bias.expand(left.shape[1], right.shape[1])
        for one, other in zip(left, right, strict=True):
            agreement = one @ other.T
            even = (agreement.square() + 1).sqrt()
            total = total + self.linear.abs() * agreement + self.even.abs() * even
        return total


class _Tower(nn.Module):
    """Residual convolutions on the half-size grid (2×2 pixels become channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4 * channels, TOWER_WIDTH, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Conv2d(TOWER_WIDTH, TOWER_WIDTH, 3, padding=1) for _ in range(TOWER_DEPTH)
        )
        self.leave = nn.Conv2d(TOWER_WIDTH, FEATURES, 1)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        H, W = planes.shape[-2:]
        padded = functional.pad(planes, (0, -W % (2 * PATCHES), 0, -H % (2 * PATCHES)))
        x = torch.relu(self.enter(functional.pixel_unshuffle(padded, 2)))
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        features: torch.Tensor = self.leave(x)
        # Agreements of chance are then about one, whatever the size of the picture.
        return features / (features[0].numel() ** 0.5 / PATCHES) ** 0.5


def _by_patch(features: torch.Tensor) -> torch.Tensor:
    """(B, F, h, w) → (P, B, F·h·w/P)."""
    B, F, h, w = features.shape
    cut = features.view(B, F, PATCHES, h // PATCHES, PATCHES, w // PATCHES)
    return cut.permute(2, 4, 0, 1, 3, 5).reshape(PATCHES * PATCHES, B, -1)


class WideResidualPairs(nn.Module):
    """WRN-depth-width (Zagoruyko and Komodakis 2016) on stacked magnitudes; one logit.

    The published one has depth 28, width 6 and two outputs whose difference is the score.
    """

    def __init__(self, channels: int, num_prototypes: int = 1, *, depth: int = 28, width: int = 6) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise InvalidInputError(f"depth is {depth}", hint="use 6·m + 4: 10, 16, 22, 28, ...")
        widths = [BASE_WIDTH * width * 2**stage for stage in range(3)]
        layers: list[nn.Module] = [
            nn.Conv2d((num_prototypes + 1) * channels, BASE_WIDTH, 3, padding=1, bias=False)
        ]
        before = BASE_WIDTH
        for stage, after in enumerate(widths):
            for block in range((depth - 4) // 6):
                layers.append(_WideBlock(before, after, 2 if stage > 0 and block == 0 else 1))
                before = after
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(before), nn.ReLU())
        self.head = nn.Linear(before, 1)

    def forward(self, prototypes: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """(B, p, C, H, W) and (B, C, H, W) → (B,)."""
        stacked = torch.cat([prototypes.flatten(1, 2), queries], dim=1)
        scores: torch.Tensor = self.head(self.body(stacked).mean(dim=(2, 3)))
        return scores[:, 0]


class _WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.first(x)
        through: Any = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        out: torch.Tensor = through + self.residual(active)
        return out
