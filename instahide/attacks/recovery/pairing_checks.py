"""Power and null of the pairing: what the attack would find in planted images, and in none.

Axes: N encodings, n private images, P public images.

Both are run with the attacker's own public images, as many encodings and the same law as the release.
*Canaries*: n public images are encoded N/n times each by the real encoder, the other public images being
the pool; a gain that is no larger than the null's means that the attack is too weak here, and "nothing
recovered" means nothing. *Null*: mixtures of public images, turned and shifted so that none occurs twice;
a gain above 0 would mean that the attack sees what is not there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ...encoder import FewPixelsWarning
from ...encoder_config import EncoderConfig
from ...images import ImageSet
from ..replica import make_replica
from .pairing_evidence import Gain, held_out_gain
from .pairing_features import Features
from .simulated_mixtures import MixtureSimulator

MAX_SHIFT = 8
DRAW = 500

FeaturesOf = Callable[[torch.Tensor], Features]


def null_gain(
    features_of: FeaturesOf,
    public: torch.Tensor,
    count: int,
    labels: torch.Tensor | None,
    config: EncoderConfig,
    scheme: str,
    num_private_images: int,
    seed: int,
) -> Gain:
    """The gain on N mixtures without a common image; labels are the release's own, which then fit nothing."""
    encodings = mixtures_without_repetition(public, count, config, scheme, seed)
    return held_out_gain(features_of(encodings), labels, config, scheme, num_private_images, seed=seed)


def canary_gain(
    features_of: FeaturesOf,
    images: NDArray[np.uint8],
    count: int,
    labels: torch.Tensor | None,
    config: EncoderConfig,
    scheme: str,
    num_private_images: int,
    seed: int,
) -> Gain | None:
    """The gain on n planted images; ``None`` if there are not enough public images to plant."""
    n = num_private_images
    textured = images[(images != images[:, :, :1, :1]).any(axis=(1, 2, 3))]
    needed = n if scheme == "inside" else n + 10 * config.num_mixed
    if len(textured) < needed:
        return None
    order = np.random.default_rng(seed).permutation(len(textured))
    classes = 2 if labels is None else labels.shape[1]
    planted = ImageSet(textured[order[:n]], np.arange(n) % classes, tuple(str(c) for c in range(classes)))
    pool = None if scheme == "inside" else ImageSet(textured[order[n:]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewPixelsWarning)  # a warning to those who encode
        replica = make_replica(planted, public=pool, config=config, releases=max(1, round(count / n)))
    return held_out_gain(
        features_of(replica.encoded.images),
        None if labels is None else replica.encoded.labels,
        config,
        scheme,
        n,
        seed=seed,
    )


def mixtures_without_repetition(
    public: torch.Tensor, count: int, config: EncoderConfig, scheme: str, seed: int
) -> torch.Tensor:
    """(N, C, H, W) magnitudes of mixtures whose sources are all different pictures, by random shifts."""
    simulator = MixtureSimulator(public, config, scheme, seed=seed)
    rng = np.random.default_rng(seed)
    reach = min(MAX_SHIFT, public.shape[2] // 2)
    parts = []
    for start in range(0, count, DRAW):
        sources, weights = simulator.draw(min(DRAW, count - start))
        for j in range(sources.shape[1]):
            shift = tuple(int(s) for s in rng.integers(-reach, reach + 1, 2))
            sources[:, j] = sources[:, j].roll(shift, dims=(2, 3))
        parts.append(simulator.rounded((weights[:, :, None, None, None] * sources).sum(1)))
    return torch.cat(parts).abs() if config.has_sign_mask else torch.cat(parts)
