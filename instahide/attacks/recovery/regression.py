"""Private images from signed mixtures: least squares whose noise is itself made of images.

Axes: N encodings, n private images, d coefficients of an image in the prior's basis, G bands.

In the basis of :class:`.image_prior.ImagePrior`, centred at the mean image, a mixture is::

    z_i = Σ_j W_ij d_j + r_i,      d_jk ~ N(0, v_k),   r_ik ~ N(0, V_ig·v_k),   k in band g      (1)

W the known private coefficients, r_i the public sources, and both have the spectrum v of images. So every
coefficient of a band has the same n×n normal equations, and d coefficients cost G solves::

    d̂ = S_g Wᵀ V_g⁻¹ z,     S_g = (Wᵀ V_g⁻¹ W + I)⁻¹                                       (2)

How strong the public sources of row i are in band g (flat sky, or grass) is not known but shows in the
residuals; V_ig is re-estimated from them (expectation maximisation, with a weak inverse-gamma prior at the
law's mean), which gives rows with smooth partners more weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

PRIOR_STRENGTH = 3.0  # the law's mean variance counts as much as this many coefficients
NOISE_FLOOR = 1e-5


@dataclass(frozen=True, eq=False)
class Regression:
    """What (2) gives.

    Args:
        images: (n, d) d̂, centred coefficients.
        prediction: (N, d) W d̂ without what row i itself contributed to it (leave-one-out), so that a wrong
            z_i cannot confirm itself.
        prediction_variance: (N, G) variance of its error in units of v.
        noise: (N, G) V_ig.
        covariance: (G, n, n) S_g, of the error of d̂ in units of v.
    """

    images: torch.Tensor
    prediction: torch.Tensor
    prediction_variance: torch.Tensor
    noise: torch.Tensor
    covariance: torch.Tensor

    def predict(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Other rows with weights W: (M, d) W d̂, and (M, G) the variance of its error and of the rest."""
        error = torch.stack([((weights @ S) * weights).sum(1) for S in self.covariance], dim=1)
        return weights @ self.images, error + self.noise.median(0).values


def octave_bands(shape: tuple[int, int, int]) -> torch.Tensor:
    """(C, H, W) band of every coefficient: principal colour × octave of the larger frequency."""
    channels, height, width = shape
    highest = torch.maximum(torch.arange(height)[:, None], torch.arange(width))
    octave = torch.ceil(torch.log2(highest.float() + 1)).long()
    octave = (octave - 1).clamp(min=0)  # frequencies 0 and 1 together: two coefficients are too few
    return torch.arange(channels)[:, None, None] * (int(octave.max()) + 1) + octave


def band_means(values: torch.Tensor, bands: torch.Tensor) -> torch.Tensor:
    """(G,) means of (d,) values over each band."""
    count = int(bands.max()) + 1
    total = torch.zeros(count).index_add_(0, bands, values)
    return total / torch.bincount(bands, minlength=count)


def solve_images(
    mixtures: torch.Tensor,
    open_signs: torch.Tensor,
    weights: torch.Tensor,
    bands: torch.Tensor,
    law_noise: torch.Tensor,
    *,
    rounds: int = 3,
) -> Regression:
    """Solve (1); everything in units of √v.

    Args:
        mixtures: (N, d) centred coefficients of z, less what is known of the public part.
        open_signs: (N, G) variance of z that signs leave open.
        weights: (N, n) W.
        bands: (d,) in 0..G-1.
        law_noise: (N,) expected V_i.
        rounds: of re-estimation of V; 1 keeps the law's.
    """
    count, n = int(bands.max()) + 1, weights.shape[1]
    images, prediction = torch.zeros(n, mixtures.shape[1]), torch.empty_like(mixtures)
    spread, noise = (torch.empty(len(weights), count) for _ in range(2))
    covariance = torch.empty(count, n, n)
    for band in range(count):
        chosen = (bands == band).nonzero()[:, 0]
        z = mixtures[:, chosen]
        V = (law_noise + open_signs[:, band]).clamp(min=NOISE_FLOOR)
        for left in reversed(range(rounds)):
            weighted = weights / V[:, None]
            S = torch.linalg.inv(weighted.T @ weights + torch.eye(n))
            d = S @ (weighted.T @ z)
            leverage = ((weights @ S) * weights).sum(1)
            if left:
                seen = (z - weights @ d).square().sum(1) + len(chosen) * (leverage + open_signs[:, band])
                V = (seen + PRIOR_STRENGTH * law_noise) / (len(chosen) + PRIOR_STRENGTH)
                V = V.clamp(min=NOISE_FLOOR)
        images[:, chosen], covariance[band] = d, S
        own = (leverage / V).clamp(max=1 - 1e-4)
        prediction[:, chosen] = (weights @ d - own[:, None] * z) / (1 - own[:, None])
        spread[:, band], noise[:, band] = leverage / (1 - own), V
    return Regression(images, prediction, spread, noise, covariance)


def remaining_noise(mass: torch.Tensor, count: torch.Tensor, law: str) -> torch.Tensor:
    """Expected Σ λ_j² of ``count`` sources whose coefficients sum to ``mass``.

    Dirichlet: mass²·2/(r + 1), exact. Folded normal: E n⁢² = 1 and (E|n|)² = 2/π give
    mass²·r/(r + r(r − 1)·2/π), the ratio of expectations.
    """
    r = count.clamp(min=1).float()
    share = 2 / (r + 1) if law == "dirichlet" else 1 / (1 + (r - 1) * 2 / math.pi)
    return mass.square() * share
