"""A matched filter on z², which the sign mask does not touch: the first guess where signs fail.

Axes: n encodings, P candidates, k sources.

If x_p is inside with coefficient λ then E[z² | x_p] − E[z²] = λ²·(x_p² − E x²) + small terms (equation
(1) of :mod:`instahide.attacks.membership`, whose likelihood this simplifies: one template per image,
and a covariance that is diagonal in the image law's transform). With V the variances of z² there::

    score(p) = ⟨V^(−½)·S(z² − E z²), t_p⟩,    t_p = V^(−½)·S(x_p² − E x²), normalised              (1)
"""

from __future__ import annotations

import torch

from ..encoder_config import EncoderConfig
from .public_sources_prior import ImagePrior

NUM_SIMULATED = 1000
FLOOR = 1e-6  # of the variances, in units of z⁴


class SquareFilter:
    """Equation (1) for one pool.

    Args:
        config: the law; only k is used, with folded-normal coefficients.
        prior: gives the transform.
        pixels: (P, C, H, W) candidates minus the prior's mean; also the images that are simulated with.
    """

    def __init__(self, config: EncoderConfig, prior: ImagePrior, pixels: torch.Tensor) -> None:
        self.prior = prior
        images = pixels + prior.mean
        squares = _simulated_mixtures(images, config.num_mixed).square_()
        self.mean = squares.mean(0)
        self.weights = prior.transform(squares - self.mean).square().mean(0).clamp(min=FLOOR).rsqrt()
        images.square_()
        images -= images.mean(0)
        self.templates = self._whiten(images)
        self.templates /= self.templates.norm(dim=1, keepdim=True).clamp(min=1e-6)

    def match(self, magnitudes: torch.Tensor) -> torch.Tensor:
        """(n, P) scores of encodings with values ``magnitudes`` (n, C, H, W)."""
        scores: torch.Tensor = self._whiten(magnitudes.square() - self.mean) @ self.templates.T
        return scores

    def _whiten(self, values: torch.Tensor) -> torch.Tensor:
        return self.prior.transform(values).mul_(self.weights).flatten(1)


def _simulated_mixtures(images: torch.Tensor, k: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)  # the attacker's own choice, no secret
    weights = torch.randn((NUM_SIMULATED, k), generator=generator).abs()
    weights /= weights.sum(1, keepdim=True)
    rows = torch.randint(len(images), (NUM_SIMULATED, k), generator=generator)
    mixtures = torch.zeros((NUM_SIMULATED, *images.shape[1:]))
    for j in range(k):
        mixtures += weights[:, j].view(-1, 1, 1, 1) * images[rows[:, j]]
    return mixtures
