"""Power and null of the pairing: what the attack would find in planted images, and in none.

Axes: N encodings, n private images, P public images.

Both are run with the attacker's own public images, as many encodings and the same law as the release.
*Canaries*: n public images are encoded N/n times each by the real encoder, the other public images being
the pool; a gain that is no larger than the null's means that the attack is too weak here, and "nothing
recovered" means nothing. *Null*: mixtures of public images, turned and shifted so that none occurs twice;
a gain above 0 would mean that the attack sees what is not there.

With a known pool both are made with images of that pool, which the attack takes out as it does in the
release (:mod:`.pairing_pool`). What stands for private images is mirrored and shifted, since the public
images may well be the pool.
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
    pool: torch.Tensor | None = None,
) -> Gain:
    """The gain on N mixtures without a common image; labels are the release's own, which then fit nothing.

    Args:
        pool: (P, C, H, W) images that are mixed in as they are, if ``features_of`` takes them out.
    """
    encodings = mixtures_without_repetition(public, count, config, scheme, seed, pool)
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
    pool: ImageSet | None = None,
) -> Gain | None:
    """The gain on n planted images; ``None`` if there are not enough public images to plant.

    Args:
        pool: images that are mixed in, if ``features_of`` takes them out.
    """
    n = num_private_images
    textured = images[(images != images[:, :, :1, :1]).any(axis=(1, 2, 3))]
    needed = n if scheme == "inside" or pool is not None else n + 10 * config.num_mixed
    if len(textured) < needed:
        return None
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(textured))
    classes = 2 if labels is None else labels.shape[1]
    chosen = textured[order[:n]]
    if pool is not None:
        chosen = np.stack([_elsewhere(torch.from_numpy(image), rng).numpy() for image in chosen])
    elif scheme == "cross":
        pool = ImageSet(textured[order[n:]])
    planted = ImageSet(chosen, np.arange(n) % classes, tuple(str(c) for c in range(classes)))
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
    public: torch.Tensor,
    count: int,
    config: EncoderConfig,
    scheme: str,
    seed: int,
    pool: torch.Tensor | None = None,
) -> torch.Tensor:
    """(N, C, H, W) magnitudes of mixtures whose sources are all different pictures, by random shifts.

    Args:
        pool: (P, C, H, W) whose images take the public slots as they are.
    """
    simulator = MixtureSimulator(public, config, scheme, seed=seed, pool=pool)
    rng = np.random.default_rng(seed)
    moved = config.num_mixed if pool is None else config.num_private
    parts = []
    for start in range(0, count, DRAW):
        sources, weights = simulator.draw(min(DRAW, count - start))
        for row in sources[:, :moved]:
            for j, image in enumerate(row):
                row[j] = _elsewhere(image, rng)
        parts.append(simulator.rounded((weights[:, :, None, None, None] * sources).sum(1)))
    return torch.cat(parts).abs() if config.has_sign_mask else torch.cat(parts)


def _elsewhere(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """(C, H, W) mirrored and shifted around the edges, never by nothing."""
    reach = max(1, min(MAX_SHIFT, image.shape[1] // 4))
    down, right = (rng.integers(1, reach + 1, 2) * rng.choice([-1, 1], 2)).tolist()
    return image.flip(2).roll((down, right), dims=(1, 2))
