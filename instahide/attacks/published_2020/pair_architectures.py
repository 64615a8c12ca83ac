"""Two networks that score pairs of magnitudes: the published kind, and one for processors.

Axes: B pairs or rows, A other rows, p prototypes of a set, C channels, H rows, W columns, d = C·H·W values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...errors import InvalidInputError
from ..recovery.sign_recovery import SignNetwork, sign_recovery

BASE_WIDTH = 16
RIDGE = 0.03  # added to the eigenvalues of the images' covariance, on the range [−1, 1]


class UnmaskedPairs(nn.Module):
    """Equations (1) and (2) of :mod:`.pair_network`.

    Args:
        shape: (C, H, W).
    """

    def __init__(self, shape: tuple[int, int, int], num_prototypes: int = 1) -> None:
        super().__init__()
        d = shape[0] * shape[1] * shape[2]
        self.num_prototypes: int = num_prototypes
        self.sign_network = SignNetwork(shape[0])
        self.whitening: torch.Tensor
        self.register_buffer("whitening", torch.eye(d))  # (d, d), symmetric
        self.shift: torch.Tensor
        self.register_buffer("shift", torch.tensor(0.1))  # μ
        self.spread: torch.Tensor
        self.register_buffer("spread", torch.tensor(0.03))  # s

    def whiten_like(self, images: torch.Tensor) -> None:
        """Set the whitening to (Σ + ridge)^(−1/2), Σ the covariance of ``images`` (P, C, H, W)."""
        flat = images.flatten(1)
        flat = flat - flat.mean(0)
        eigenvalues, vectors = torch.linalg.eigh((flat.T @ flat / len(flat)).double())
        scaled = vectors * (eigenvalues.clamp(min=0) + RIDGE).rsqrt()
        self.whitening.copy_(scaled @ vectors.T)

    def features(self, magnitudes: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → (B, d) unit vectors, each up to its sign."""
        mixtures = sign_recovery(magnitudes, self.sign_network).mean.flatten(1)
        return nn.functional.normalize(mixtures @ self.whitening, dim=1)

    def prototype_features(self, prototypes: torch.Tensor) -> torch.Tensor:
        """(B, p, C, H, W) → (B, d): the sum of the set, each turned to agree with those before it."""
        if prototypes.shape[1] != self.num_prototypes:
            raise InvalidInputError(
                f"{prototypes.shape[1]} prototypes for a network of {self.num_prototypes}",
                hint="train one for this number",
            )
        each = self.features(prototypes.flatten(0, 1)).view(*prototypes.shape[:2], -1)
        total = each[:, 0]
        for other in each[:, 1:].unbind(1):
            agrees = (total * other).sum(1, keepdim=True) >= 0
            total = total + torch.where(agrees, other, -other)
        return nn.functional.normalize(total, dim=1)

    def table(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """(A, B) scores of features (A, d) and (B, d), equation (2)."""
        agreement = (left @ right.T).mul_(self.shift / self.spread**2).abs_()
        # log cosh t without overflow: |t| + log(1 + exp(−2|t|)) − log 2
        return agreement + torch.log1p(torch.exp(-2 * agreement)) - 0.6931471805599453


class WideResidualPairs(nn.Module):
    """WRN-depth-width (Zagoruyko and Komodakis 2016) on stacked magnitudes; one logit.

    The published one has depth 28, width 6 and two outputs whose difference is the score.
    """

    def __init__(self, channels: int, num_prototypes: int = 1, *, depth: int = 28, width: int = 6) -> None:
        super().__init__()
        self.num_prototypes: int = num_prototypes
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
