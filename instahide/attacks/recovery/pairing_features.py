"""What of an encoding tells its private images: a blurred signed mixture in whitened coordinates.

Axes: N encodings, d = C·H'·W' pooled values, r directions, P public images.

Two encodings that share a private image can be told from two that do not only if the mixtures themselves,
not their magnitudes, are compared: ⟨W z, W z'⟩ = ± λ·λ'·|W x|² + noise, with W the whitening of natural
images, beats every comparison of e² (area under the ROC curve of one pair 0.73 against 0.66; 0.86 if the
signs were known). So the sign mask is undone first, coarsely but for little: images are averaged over b×b
blocks until d ≤ 800, where mostly |mean z| ≈ mean |e|, and the signs s of a mixture m = s∘|e| follow an
Ising law under the Gaussian image prior::

    P(s) ∝ exp(−mᵀ Q m / 2),    Q = (v·Σ + ε·I)⁻¹                                            (1)
    m_i ← |e_i|·tanh( |e_i|·q_i·c_i ),   c_i = m_i − (Q m)_i / q_i,   q = diag Q                    (2)

c_i and 1/q_i are mean and variance of value i given all others; (2) is the mean-field equation, iterated
with damping while ε falls from far above the variance of a mixture to far below it (Peterson and Anderson
1987): only broad areas get a sign at first, detail later. The slower ε falls, the better.

Features are y = Λ^(−1/2) Vᵀ m in the first r eigenvectors of Σ = V Λ Vᵀ, up to one sign an encoding. What
they are worth is measured on mixtures of public images, which the attacker makes and knows::

    y_d = ± c_d·(Σ_j λ_j·u_jd) + noise_d                                                           (3)

with u the whitened images, slope c_d and the variance of the noise by regression.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from ...encoder_config import EncoderConfig
from .sign_recovery import SignNetwork, sign_recovery
from .simulated_mixtures import MixtureSimulator, simulate_coefficients

MAX_VALUES = 800
MAX_DIRECTIONS = 500
NUM_SIMULATED = 600
NUM_TEMPERATURES = 60
SWEEPS = 3
DAMPING = 0.5
HOTTEST, COLDEST = 5.0, 0.016  # of the variance of a mixture
EIGENVALUE_FLOOR = 1e-6  # of the largest


@dataclass(frozen=True, eq=False)
class ImagePrior:
    """Pooled public images as a Gaussian: Σ = V Λ Vᵀ about the mean.

    Args:
        mean: (d,).
        eigenvalues: (d,) falling.
        eigenvectors: (d, d) columns V.
        block: b, side of the blocks that are averaged.
    """

    mean: torch.Tensor
    eigenvalues: torch.Tensor
    eigenvectors: torch.Tensor
    block: int

    def pool(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → (N, d), means over b×b blocks."""
        if self.block > 1:
            images = functional.avg_pool2d(images, self.block, ceil_mode=True)
        return images.flatten(1)

    def whiten(self, pooled: torch.Tensor, directions: int) -> torch.Tensor:
        """(N, d) → (N, r) coordinates of unit variance for one image; the mean is not subtracted."""
        scale = self.eigenvalues[:directions].rsqrt()
        return (pooled @ self.eigenvectors[:, :directions]) * scale


@dataclass(frozen=True, eq=False)
class Features:
    """Equation (3): N noisy signed mixtures in whitened coordinates.

    Args:
        values: (N, r) y.
        slope: (r,) c.
        noise_variance: (r,) of what is neither private image in y; public sources included.
        prior: turns an image into coordinates.
        signs_known: no sign mask, so no free sign per row.
    """

    values: torch.Tensor
    slope: torch.Tensor
    noise_variance: torch.Tensor
    prior: ImagePrior
    signs_known: bool

    def subset(self, rows: torch.Tensor) -> Features:
        """The features of some encodings."""
        return replace(self, values=self.values[rows])

    def of_images(self, images: torch.Tensor) -> torch.Tensor:
        """(n, C, H, W) in [-1, 1] → (n, r) what they add to y per unit of coefficient."""
        return self.prior.whiten(self.prior.pool(images), len(self.slope)) * self.slope


def image_prior(images: torch.Tensor) -> ImagePrior:
    """From public images (P, C, H, W) in [-1, 1] and their mirror images."""
    C, H, W = images.shape[1:]
    block = math.ceil(math.sqrt(C * H * W / MAX_VALUES))
    both = torch.cat([images, images.flip(3)])
    pooled = (functional.avg_pool2d(both, block, ceil_mode=True) if block > 1 else both).flatten(1)
    mean = pooled.mean(0)
    centred = pooled - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    values = values.clamp(min=float(values[-1]) * EIGENVALUE_FLOOR)
    return ImagePrior(mean, values.flip(0), vectors.flip(1).contiguous(), block)


def mixture_features(
    encodings: torch.Tensor,
    public_images: torch.Tensor,
    config: EncoderConfig,
    scheme: str,
    *,
    network: SignNetwork | None = None,
    num_temperatures: int = NUM_TEMPERATURES,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
) -> Features:
    """Features of ``encodings`` (N, C, H, W), calibrated on simulated mixtures of ``public_images``.

    Args:
        public_images: (P, C, H, W) in [-1, 1].
        network: undoes the sign masks in place of the annealing; better, once it is trained.
        num_temperatures: of the annealing; cost and quality grow with it.
        seed: of the attacker's mixtures.
    """
    prior = image_prior(public_images)
    coefficients = simulate_coefficients(np.random.default_rng(seed), 4000, config, scheme=scheme)
    spread = float(np.square(coefficients).sum(1).mean())
    directions = min(MAX_DIRECTIONS, len(prior.mean))
    simulator = MixtureSimulator(public_images, config, scheme, seed=seed)
    sources, weights = simulator.draw(NUM_SIMULATED)
    mixtures = simulator.rounded((weights[:, :, None, None, None] * sources).sum(1))
    if not config.has_sign_mask:
        values = prior.whiten(prior.pool(encodings) - prior.mean, directions)
        slope = torch.ones(directions)
    else:
        both = torch.cat([mixtures, encodings]).abs()
        if network is not None:
            signed = prior.pool(sign_recovery(both, network).mean)
        else:
            generator = torch.Generator().manual_seed(seed)
            signed = _anneal(prior, prior.pool(both), spread, num_temperatures, generator, progress)
        recovered = prior.whiten(signed, directions)
        values = recovered[NUM_SIMULATED:]
        truth = prior.whiten(prior.pool(mixtures), directions)
        agree = torch.sign((recovered[:NUM_SIMULATED] * truth).sum(1, keepdim=True))
        slope = (agree * recovered[:NUM_SIMULATED] * truth).sum(0) / truth.square().sum(0)
        slope = slope.clamp(min=0.05)
    private = float(np.square(coefficients[:, : config.num_private]).sum(1).mean())
    total = values.square().mean(0)
    noise = (total - private * slope.square()).clamp(min=0.2 * total)
    return Features(values, slope, noise, prior, not config.has_sign_mask)


def _anneal(
    prior: ImagePrior,
    magnitudes: torch.Tensor,
    spread: float,
    num_temperatures: int,
    generator: torch.Generator,
    progress: Callable[..., None] | None,
) -> torch.Tensor:
    """(N, d) m by equation (2) with v = ``spread``."""
    V, values = prior.eigenvectors, prior.eigenvalues * spread
    scale = float(values.mean())
    mixture = 0.01 * magnitudes * torch.randn(magnitudes.shape, generator=generator)
    for step, epsilon in enumerate(np.geomspace(HOTTEST * scale, COLDEST * scale, num_temperatures)):
        precision = (V / (values + float(epsilon))) @ V.T
        q = precision.diagonal()
        pull = magnitudes * q
        for _ in range(SWEEPS):
            given_others = mixture - (mixture @ precision) / q
            mixture.mul_(1 - DAMPING).add_(DAMPING * magnitudes * torch.tanh(pull * given_others))
        if progress is not None:
            progress(step + 1, num_temperatures, "undoing the sign masks, coarsely")
    return mixture
