"""Features when the public pool is known: the public part is found and taken out first.

Axes: N encodings, r directions, P pool images.

With the pool in hand most public sources of an encoding, and their coefficients, are identified from that
encoding alone (:mod:`instahide.attacks.public_sources`), and they settle most of its signs. What is left,

    z − Σ c_j·pool_j = λ·x_i + λ'·x_j + sources not found,                                        (1)

is nearly free of the noise that :mod:`.pairing_features` has to average away over many releases. It is
whitened and calibrated in the same way, on mixtures with images of the same pool.

A pool that was not mixed in yields nothing and cannot be taken out. How many of its images are found in the
release is compared with how many are found in the attacker's own mixtures with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from ...images import ImageSet
from ...mixing import to_unit_range
from ..public_sources import identify_public_sources
from ..view import AttackerView
from .pairing_features import MAX_DIRECTIONS, Features, image_prior
from .sign_recovery import SignNetwork, sign_recovery
from .simulated_mixtures import MixtureSimulator, simulate_coefficients

NUM_SIMULATED = 200
OFFSET = 5


def features_without_pool(
    release: AttackerView,
    pool: ImageSet,
    network: SignNetwork,
    *,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
) -> tuple[Features, float]:
    """Features of ``release`` with the images of ``pool`` taken out as far as they are identified.

    Returns:
        the features, and images found in an encoding of ``release``, per image found in own mixtures.
    """
    config, scheme = release.config, release.scheme
    public = to_unit_range(release.public_images.images)
    prior = image_prior(public)
    directions = min(MAX_DIRECTIONS, len(prior.mean))
    simulator = MixtureSimulator(public, config, scheme, seed=seed, pool=to_unit_range(pool.images))
    sources, weights = simulator.draw(NUM_SIMULATED)
    # Simulated private images must not be in the pool, which the public images may well be.
    for j in range(config.num_private):
        sources[:, j] = sources[:, j].roll((OFFSET, OFFSET), dims=(2, 3)).flip(3)
    parts = weights[:, :, None, None, None] * sources
    simulated = simulator.rounded(parts.sum(1))
    both = torch.cat([simulated, release.encodings]).abs()
    view = replace(release, encodings=both, labels=None, public_pool=pool)
    found = identify_public_sources(
        view, pool=pool, signed=sign_recovery(both, network).mean, progress=progress
    )
    images = to_unit_range(pool.images)
    rest = found.mixtures.clone()
    for rows, coefficients in zip(found.rows.T, found.coefficients.T, strict=True):
        scale = torch.from_numpy(np.where(rows >= 0, coefficients, 0.0)).float()
        rest -= scale[:, None, None, None] * images[torch.from_numpy(np.maximum(rows, 0))]
    values = prior.whiten(prior.pool(rest), directions)
    private = parts[:, : config.num_private].sum(1)
    truth = prior.whiten(prior.pool(private), directions)
    own = values[:NUM_SIMULATED]
    agree = torch.sign((own * truth).sum(1, keepdim=True))
    slope = ((agree * own * truth).sum(0) / truth.square().sum(0)).clamp(min=0.05)
    values = values[NUM_SIMULATED:]
    law = simulate_coefficients(np.random.default_rng(seed), 4000, config, scheme=scheme)
    expected = float(np.square(law[:, : config.num_private]).sum(1).mean())
    total = values.square().mean(0)
    noise = (total - expected * slope.square()).clamp(min=0.05 * total)
    identified = (found.rows >= 0).mean(axis=1)
    share = identified[NUM_SIMULATED:].mean() / max(identified[:NUM_SIMULATED].mean(), 1e-3)
    return Features(values, slope, noise, prior, False), float(share)
