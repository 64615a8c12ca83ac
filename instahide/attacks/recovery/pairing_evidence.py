"""Was anything recovered? Decided without the truth, on encodings the attack has not seen.

Axes: N encodings, n private images.

A fit always finds n images, in noise too. What it finds in noise says nothing about *other* encodings. So a tenth
of the encodings is put aside, images are estimated from the rest, and each of those put aside is asked how
much better two of the images explain it than public images alone do::

    gain(y) = log [ mean over pairs, signs, coefficients of p(y | λ·u_i + λ'·u_j) / p(y | public only) ]     (1)

in nats, with the uncertainty of u in the likelihood, so that the mean gain of images that are not inside is not
positive as far as the model holds. It holds only roughly (features are not Gaussian), therefore the same is done
to a *null*, encodings the attacker makes of public images of which none occurs twice as a private one, and to
*canaries*, public images encoded like the private ones would be. The release leaks if its gain exceeds the
null's and zero by ``SIGMAS`` standard errors and reaches a share ``SHARE`` of the canaries' gain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ...encoder_config import EncoderConfig
from .pairing import class_candidates, find_pairing
from .pairing_features import Features
from .pairing_model import Candidates, Vectors, assign, fit, random_vectors
from .pairing_slots import label_slots, pair_coefficients, single_coefficients
from .pairing_unlabelled import likely_pairs

HELD_OUT = 0.1
SIGMAS = 5.0
SHARE = 0.1
KNOWN_STEPS = 3


@dataclass(frozen=True)
class Gain:
    """Mean of (1) over the encodings put aside, and its standard error."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, gains: torch.Tensor) -> Gain:
        spread = float(gains.std()) if len(gains) > 1 else math.inf
        return cls(float(gains.mean()), spread / math.sqrt(len(gains)))


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
    held, rest = _split(len(features.values), seed)
    pairing = find_pairing(
        features.subset(rest),
        None if labels is None else labels[rest],
        config,
        scheme,
        num_private_images,
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
            n, m = num_private_images, groups[0].first.shape[1]
            skipped = math.log(n * (n - 1) / (m * (m - 1)))
        else:
            slots = label_slots(labels[rest], config, scheme)
            own = label_slots(labels[held], config, scheme)
            groups = class_candidates(own, labels.shape[1], num_private_images, sizes_from=slots)
            skipped = 0.0
        return Gain.of(assign(shown, groups, vectors).log_evidence - skipped)


def known_pairing_gain(
    features: Features, rows: torch.Tensor, coefficients: torch.Tensor, num_images: int, *, seed: int = 0
) -> Gain:
    """Equation (1) where pairs and coefficients are given, (N, 2) each."""
    held, rest = _split(len(features.values), seed)

    def given(chosen: torch.Tensor) -> list[Candidates]:
        pairs, weights = rows[chosen], coefficients[chosen]
        return [Candidates(torch.arange(len(chosen)), pairs[:, :1], pairs[:, 1:], weights[:, None])]

    with torch.inference_mode():
        generator = torch.Generator().manual_seed(seed)
        known = given(rest)
        part = features.subset(rest)
        vectors = random_vectors(features, num_images, generator)
        vectors = fit(part, known, vectors, np.linspace(0.05, 1.0, 10 * KNOWN_STEPS), signs_tied=True)
        vectors = Vectors(vectors.mean, vectors.covariance, torch.zeros(num_images))
        return Gain.of(assign(features.subset(held), given(held), vectors).log_evidence)


def _split(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows put aside and the rest."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    size = max(1, int(HELD_OUT * count))
    return order[:size], order[size:]
