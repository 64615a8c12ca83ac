"""What the attacker expects of an image: its mean, and its spectrum in cosines and principal colours.

Axes: N images, P public images, C channels, H rows, W columns, d = C·H·W.

Photographs are nearly stationary: their covariance Σ is nearly diagonal in the two-dimensional cosine
basis (Ahmed, Natarajan and Rao 1974), and over channels in the principal axes of colour. So instead of a
d×d matrix the prior keeps d variances: :meth:`ImagePrior.coefficients` maps x to the coefficients of
x − mean, an orthonormal transform, and ``variances`` says how large each is. Everything costs two small
matrix products an image; nothing d² is ever formed.

:func:`sign_odds` tells a positive from a negative: photographs are not symmetric about grey (skies are
bright, shadows small), so a logistic regression on public images x against −x says how likely a
recovered image, or a mixture, is upright; the encodings themselves never can.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...errors import InvalidInputError

VARIANCE_FLOOR = 1e-6  # in units of the squared range; also the rounding of 8-bit pixels, (2/255)²/12 ≈ 5e-6
BLOCK = 512
POOLED_SIDE = 8
ODDS_STEPS = 40
ODDS_RIDGE = 1e-2


@dataclass(frozen=True, eq=False)
class ImagePrior:
    """Mean and spectrum of a population of images.

    Args:
        mean: (C, H, W).
        variances: (C, H, W) of the coefficients: principal colour × vertical × horizontal frequency.
        colours: (C, C) orthonormal rows, the principal axes of colour.
        pixel_variance: mean variance of a pixel.
    """

    mean: torch.Tensor
    variances: torch.Tensor
    colours: torch.Tensor
    pixel_variance: float

    @classmethod
    def of(cls, images: torch.Tensor) -> ImagePrior:
        """From P images (P, C, H, W) in [-1, 1]."""
        if len(images) < 2:
            raise InvalidInputError(
                f"{len(images)} public images have no statistics",
                hint="give some hundred images of the same kind",
            )
        mean = images.mean(0)
        channels = images.shape[1]
        centred = (images[:: max(1, len(images) // 2000)] - mean).transpose(0, 1).reshape(channels, -1)
        _, colours = torch.linalg.eigh(centred @ centred.T)
        prior = cls(mean, torch.ones_like(mean), colours.T.contiguous(), 1.0)
        total = torch.zeros_like(mean)
        for first in range(0, len(images), BLOCK):
            total += prior.coefficients(images[first : first + BLOCK]).square().sum(0)
        variances = total / len(images) + VARIANCE_FLOOR
        return cls(mean, variances, prior.colours, float(variances.mean()))

    def coefficients(self, images: torch.Tensor, *, centre: bool = True) -> torch.Tensor:
        """(N, C, H, W) → (N, C, H, W) coefficients of x − mean, or of x itself (``centre=False``)."""
        vertical, horizontal = cosines(images.shape[2]), cosines(images.shape[3])
        shifted = images - self.mean if centre else images
        turned = torch.einsum("cd,ndhw->nchw", self.colours, shifted)
        return vertical @ turned @ horizontal.T

    def images(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`coefficients` (with ``centre=True``)."""
        vertical, horizontal = cosines(coefficients.shape[2]), cosines(coefficients.shape[3])
        turned = vertical.T @ coefficients @ horizontal
        return torch.einsum("dc,ndhw->nchw", self.colours, turned) + self.mean


def cosines(size: int) -> torch.Tensor:
    """(size, size) orthonormal discrete cosine transform, type II; row = frequency."""
    position = (torch.arange(size, dtype=torch.float64) + 0.5) * math.pi / size
    rows = torch.cos(torch.arange(size, dtype=torch.float64)[:, None] * position) * math.sqrt(2.0 / size)
    rows[0] = math.sqrt(1.0 / size)
    return rows.float()


def sign_odds(upright: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """(N,) log odds that ``images`` are upright and not negatives, learnt from ``upright`` ones.

    An odd function of the image, so −x has the opposite odds: logistic regression without intercept on
    the image averaged to at most 8×8 blocks, and on the mean of x³ of every channel and quarter.
    """
    features, asked = _odd_features(upright), _odd_features(images)
    scale = features.square().mean(0).sqrt().clamp(min=1e-6)
    features, asked = features / scale, asked / scale
    weights = torch.zeros(features.shape[1], dtype=torch.float64)
    ridge = ODDS_RIDGE * len(features) * torch.eye(len(weights), dtype=torch.float64)
    for _ in range(ODDS_STEPS):  # Newton's method; each image stands for x → 1 and −x → 0 alike
        probability = torch.sigmoid(features @ weights)
        gradient = features.T @ (1 - probability) - ridge @ weights
        curvature = (features * (probability * (1 - probability))[:, None]).T @ features + ridge
        step = torch.linalg.solve(curvature, gradient)
        weights = weights + step
        if step.abs().max() < 1e-8:
            break
    return (asked @ weights).float()


def _odd_features(images: torch.Tensor) -> torch.Tensor:
    height, width = (min(POOLED_SIDE, side) for side in images.shape[2:])
    pooled = torch.nn.functional.adaptive_avg_pool2d(images, (height, width)).flatten(1)
    skew = torch.nn.functional.adaptive_avg_pool2d(images**3, (2, 2)).flatten(1)
    return torch.cat([pooled, skew], dim=1).double()
