"""How one labelled data set is split for a comparison of defences.

Axes: N images of a part.

members     trained on and, where a defence encodes, encoded: the hospital
others      of the same kind, never trained on: the non-members of the membership tests
similar     of the same kind, held by the attacker: statistics, shadow models, canaries
test        for accuracy
pool        public images to mix in; no relation to the rest

The split is random with a seed; it is a choice of data, not a secret.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import InvalidInputError
from ...images import ImageSet

SHARES = {"members": 0.4, "others": 0.2, "similar": 0.2, "test": 0.2}
MIN_MEMBERS = 60
MAX_MEMBERS = 1000


@dataclass(frozen=True, eq=False)
class FrontierData:
    """The parts; every part but ``pool`` has labels."""

    members: ImageSet
    others: ImageSet
    similar: ImageSet
    test: ImageSet
    pool: ImageSet


def split_for_frontier(images: ImageSet, pool: ImageSet, *, seed: int = 0) -> FrontierData:
    """Split ``images`` at random; at most 1,000 become members, the others in proportion.

    Raises:
        InvalidInputError: no labels, fewer than 150 images, or a pool of another shape.
    """
    if images.labels is None or images.num_classes < 2:
        raise InvalidInputError("a frontier needs labels of two classes or more", hint="one folder a class")
    if pool.image_shape != images.image_shape:
        raise InvalidInputError(
            f"the pool is {pool.image_shape}, the images {images.image_shape}", hint="resize the pool"
        )
    total = min(len(images), round(MAX_MEMBERS / SHARES["members"]))
    if total * SHARES["members"] < MIN_MEMBERS:
        raise InvalidInputError(
            f"{len(images)} images are too few", hint=f"give {round(MIN_MEMBERS / SHARES['members'])} or more"
        )
    order = np.random.default_rng(seed).permutation(len(images))[:total]
    ends = np.round(np.cumsum(list(SHARES.values())) * total).astype(int)
    members, others, similar, test = (images.subset(part) for part in np.split(order, ends[:-1]))
    return FrontierData(members, others, similar, test, pool)
