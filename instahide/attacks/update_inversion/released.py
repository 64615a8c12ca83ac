"""The second stage: encodings recovered from updates are released encodings.

Axes: N encodings over all updates, C H W, K classes.

An update of a model trained on encodings gives the encodings back, with their soft labels where the last
layer is dense. From then on "only updates leave the site" protects as much as publishing the encodings does:
every attack on encodings (:mod:`..recovery`, :mod:`..membership`) takes the view made here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...encoder_config import EncoderConfig
from ...errors import InvalidInputError
from ...images import ImageSet
from ..view import AttackerView
from .inversion import Inversion


def view_of_recovered(
    inversions: Sequence[Inversion],
    config: EncoderConfig,
    public_images: ImageSet,
    *,
    scheme: str = "inside",
    public_pool: ImageSet | None = None,
    only_verified: bool = True,
) -> AttackerView:
    """The encodings that several updates gave back, as the attacks on encodings take them.

    Args:
        inversions: one for each update.
        config: the published law.
        only_verified: leave out images the attacker cannot be sure of.

    Raises:
        InvalidInputError: nothing was recovered.
    """
    images, labels = [], []
    for inversion in inversions:
        kept = inversion.verified if only_verified else torch.ones(len(inversion.images), dtype=torch.bool)
        images.append(inversion.images[kept])
        if inversion.labels is not None:
            labels.append(inversion.labels[kept])
    encodings = torch.cat(images) if images else torch.zeros(0)
    if len(encodings) == 0:
        raise InvalidInputError("no encoding was recovered from the updates", hint="nothing left to attack")
    soft = torch.cat(labels) if sum(map(len, labels)) == len(encodings) else None
    return AttackerView(encodings, soft, config, scheme, public_images, public_pool)
