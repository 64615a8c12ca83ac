"""DP-InstaHide: mixing, then noise. What mode ``dp`` does to a mixed image and its label.

Axes: N images, B rows of a batch, k sources, K classes, d = C·H·W values of an image.

Borgnia et al. (*DP-InstaHide: Provably Defusing Poisoning and Backdoor Attacks with Differentially
Private Data Augmentations*, 2021) mix k images and add noise; the published trainer adds float noise
to images only, bounds nothing and prints no epsilon. Here, for a row with sources x_0 … x_{k−1} in
[-1, 1]^d, coefficients λ and labels y:

    c_j = min(1, max_norm / ‖x_j‖)              private sources only; the norm of the noise's law
    m   = Σ_j λ_j·c_j·x_j,    ℓ = Σ_j μ_j·onehot(y_j)       μ: λ of the private sources, summing to 1
    e   = round(clip(m + noise, −R, R) / R)     R ``output_range``; levels of ``quantization_bits``
    t   = the point of the simplex nearest to ℓ + label noise

Everything after the noise (clip, division, rounding, projection) is post-processing and costs nothing.
Noise is drawn in whole numbers on a grid fine against its scale (:mod:`instahide.integer_noise`), so
no float of a secret meets a float of noise. There is no sign mask: it would take away signal that
was paid for, and protects nothing that the noise does not.

How far m and ℓ can move when one image is another, and what epsilon that is over all releases and
roles of the image, is :mod:`instahide.encoding_guarantee`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .encoder_config import EncoderConfig
from .integer_noise import add_noise
from .mixing_kernel import release_pages
from .randomness import Keystream

_CHUNK_BYTES = 8 << 20


def norm_factors(images: NDArray[np.uint8], config: EncoderConfig) -> NDArray[np.float64] | None:
    """(N,) c = min(1, max_norm / ‖x‖) of every image; ``None`` where the law has no ``max_norm``."""
    if config.max_norm is None:
        return None
    factors = np.empty(len(images))
    step = max(1, _CHUNK_BYTES // (8 * int(np.prod(images.shape[1:]))))
    for first in range(0, len(images), step):
        # x = (2p − 255) / 255, its norm from whole numbers
        values = (
            2 * images[first : first + step].reshape(-1, int(np.prod(images.shape[1:]))).astype(np.int64)
            - 255
        )
        sums = np.abs(values).sum(axis=1) if config.noise_law == "laplace" else (values**2).sum(axis=1)
        norms = sums / 255.0 if config.noise_law == "laplace" else np.sqrt(sums) / 255.0
        factors[first : first + step] = np.minimum(1.0, config.max_norm / norms)
        release_pages(images)
    return factors


def clipped_weights(
    coefficients: NDArray[np.float64], factors: NDArray[np.float64] | None, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(B, k) λ_j·c_j: the first columns belong to the images ``rows`` (B, s), the others are not clipped."""
    if factors is None:
        return coefficients
    weights = coefficients.copy()
    weights[:, : rows.shape[1]] *= factors[rows]
    return weights


def with_noisy_images(
    stream: Keystream, mixed: torch.Tensor, weights: NDArray[np.float64], config: EncoderConfig
) -> torch.Tensor:
    """(B, d) float32 released values in [-1, 1].

    Args:
        mixed: (B, d) as the mixing pass leaves it: (2·Σ w_j·p_j − 255) / 255 for 8-bit pixels p.
        weights: (B, k) w_j = λ_j·c_j, whose sum falls short of 1 where images were clipped.
    """
    # Σ w·(2p − 255)/255 = (2·Σ w·p − 255)/255 + (1 − Σ w)
    shortfall = 1.0 - weights.sum(axis=1, keepdims=True)
    noisy = add_noise(
        stream, mixed.cpu().numpy().astype(np.float64) + shortfall, config.noise_law, config.noise_scale
    )
    levels, R = config.quantization_levels, config.output_range
    assert levels is not None
    released = np.rint(np.clip(noisy / R, -1.0, 1.0) * levels).astype(np.float32) / np.float32(levels)
    return torch.from_numpy(released + np.float32(0.0)).to(mixed.device)


def with_noisy_labels(stream: Keystream, labels: torch.Tensor, config: EncoderConfig) -> torch.Tensor:
    """(B, K) float32 labels on the simplex: noise, then the nearest point with entries ≥ 0 that sum to 1."""
    noisy = add_noise(stream, labels.numpy(), config.noise_law, config.label_noise_scale)
    return torch.from_numpy(nearest_on_simplex(noisy).astype(np.float32))


def nearest_on_simplex(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean projection of each row onto {t ≥ 0, Σ t = 1} (Duchi et al., ICML 2008, figure 1)."""
    ordered = -np.sort(-rows, axis=1)
    excess = np.cumsum(ordered, axis=1) - 1.0
    count = np.arange(1, rows.shape[1] + 1)
    kept = (ordered - excess / count > 0).sum(axis=1)
    threshold = excess[np.arange(len(rows)), kept - 1] / kept
    return np.asarray(np.maximum(rows - threshold[:, None], 0.0))
