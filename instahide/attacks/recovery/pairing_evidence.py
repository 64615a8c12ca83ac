"""Was anything recovered? Decided without the truth, on encodings the attack has not seen.

Axes: N encodings, n private images.

A fit always finds n images, in noise too. What it finds in noise says nothing about *other* encodings. So
a tenth of the encodings (60 at least) is put aside, images are estimated from the rest, and each of those
put aside is asked how much better two of the images explain it than two images nobody has seen::

    gain(y) = log [ p(y | two of the images found) / p(y | two unknown images) ]                       (1)

in nats (:mod:`.pairing_predictive`). Images that are not inside explain nothing, so that their mean gain is
not positive as far as the model holds. Where few encodings are put aside, two such parts are, one after
the other (cross-fitting). The model holds only for mixtures of images: in noise the steps before it see
patterns of their own making. So encodings must first look like mixtures: neighbouring magnitudes |e| agree
(:func:`smoothness`), at least half as much as in mixtures of public images. And what is found must not be
public: with a small pool, public images are in many encodings too (:func:`share_public`).

The same gain is measured on a *null*, mixtures of public images of which none occurs twice, and on
*canaries*, public images encoded as the private ones would be: how much this attack would have found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from ...encoder_config import EncoderConfig
from .pairing import class_candidates, find_pairing
from .pairing_features import Features
from .pairing_model import Vectors
from .pairing_predictive import log_bayes_factors
from .pairing_seeds import alike
from .pairing_slots import label_slots, pair_coefficients, single_coefficients
from .pairing_unlabelled import likely_pairs

HELD_OUT = 0.1
MIN_HELD_OUT = 60  # but not more than a quarter
ENOUGH_HELD_OUT = 100  # with fewer, another part is put aside after the first
SIGMAS = 5.0
RANK_SIGMAS = 4.0  # ranks have no heavy tails: one false alarm in 30,000
MIN_SMOOTHNESS = 0.5  # of that of public mixtures
PUBLIC_MATCH = 0.7


@dataclass(frozen=True)
class Gain:
    """Mean of (1) over the encodings put aside, its standard error, and the gains one by one."""

    mean: float
    standard_error: float
    gains: torch.Tensor | None = field(default=None, repr=False, compare=False)

    def exceeds(self, other: Gain | None) -> bool:
        """More than zero and than ``other``: in the mean by ``SIGMAS``, or in ranks by ``RANK_SIGMAS``.

        A few encodings gain hundreds of nats and others lose some, so the mean's error is large; against a
        null, ranks (Mann and Whitney 1947) decide with fewer encodings.
        """
        if other is None:
            return self.mean >= SIGMAS * self.standard_error
        if self.gains is not None and other.gains is not None:
            above_zero = float(self.gains.median()) > 0 and self.mean > 0
            if above_zero and rank_score(self.gains, other.gains) > RANK_SIGMAS:
                return True
        error = math.hypot(self.standard_error, other.standard_error)
        return self.mean >= SIGMAS * self.standard_error and self.mean - other.mean > SIGMAS * error

    @classmethod
    def of(cls, gains: torch.Tensor) -> Gain:
        spread = float(gains.std()) if len(gains) > 1 else math.inf
        return cls(float(gains.mean()), spread / math.sqrt(len(gains)), gains.detach())


def rank_score(first: torch.Tensor, second: torch.Tensor) -> float:
    """How many standard deviations the Mann-Whitney count of first > second lies above chance; no ties."""
    m, n = len(first), len(second)
    wins = float((first[:, None] > second[None, :]).sum())
    return (wins - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12)


def held_out_gain(
    features: Features,
    labels: torch.Tensor | None,
    config: EncoderConfig,
    scheme: str,
    num_private_images: int,
    *,
    seed: int = 0,
) -> Gain:
    """Equation (1) for images paired from nine tenths of the encodings."""
    gains = [
        _gains(features, labels, config, scheme, num_private_images, held, rest, seed)
        for held, rest in _splits(len(features.values), seed)
    ]
    return Gain.of(torch.cat(gains))


def _gains(
    features: Features,
    labels: torch.Tensor | None,
    config: EncoderConfig,
    scheme: str,
    num_private_images: int,
    held: torch.Tensor,
    rest: torch.Tensor,
    seed: int,
) -> torch.Tensor:
    """Equation (1) of the rows ``held`` for images paired from the rows ``rest``."""
    n = min(num_private_images, len(rest))  # at one release an image may be in no row but those put aside
    pairing = find_pairing(
        features.subset(rest),
        None if labels is None else labels[rest],
        config,
        scheme,
        n,
        seed=seed,
        restarts=1,
    )
    vectors = Vectors(
        pairing.vectors.mean, pairing.vectors.covariance, torch.zeros_like(pairing.vectors.prices)
    )
    with torch.inference_mode():
        shown = features.subset(held)
        if labels is None:
            singles, pairs = single_coefficients(config, scheme), pair_coefficients(config, scheme)
            groups = [likely_pairs(shown, singles, pairs, vectors)]
            # Only the likeliest images are summed over, but all were possible.
            m = groups[0].first.shape[1]
            skipped = math.log(n * (n - 1) / (m * (m - 1)))
        else:
            slots = label_slots(labels[rest], config, scheme)
            own = label_slots(labels[held], config, scheme)
            groups = class_candidates(own, labels.shape[1], n, sizes_from=slots)
            skipped = 0.0
        return log_bayes_factors(shown, groups, vectors) - skipped


def _splits(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows put aside and the rest, once or twice."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    size = max(1, int(HELD_OUT * count), min(MIN_HELD_OUT, count // 4))
    starts = [0] if size >= ENOUGH_HELD_OUT else [0, size]
    return [(order[at : at + size], torch.cat([order[:at], order[at + size :]])) for at in starts]


def smoothness(encodings: torch.Tensor) -> float:
    """Correlation of |e| at neighbouring values of a row and of a column, over all (N, C, H, W)."""
    size = encodings.abs()
    size = size - size.mean(0)
    pairs = ((size[..., 1:], size[..., :-1]), (size[:, :, 1:], size[:, :, :-1]))
    crossed = sum(float((a * b).mean()) for a, b in pairs) / 2
    return crossed / max(float(size.square().mean()), 1e-12)


def share_public(features: Features, vectors: torch.Tensor, images: torch.Tensor) -> float:
    """Share of the vectors (n, r) that are one of the public ``images`` (P, C, H, W)."""
    if features.signs_known:  # the mean image was taken out
        images = images - images.mean(0)
    known = features.of_images(images)
    return float((alike(vectors, known).max(1).values > PUBLIC_MATCH).float().mean())
