"""Who was mixed with whom, from the encodings alone: the pairing stage of the label-only and no-labels tiers.

Axes: N encodings, n private images, K classes.

:func:`find_pairing` says for every encoding which two of the n private images are inside, and with which
coefficients; what it calls image 0..n−1 is its own numbering (within a class, if there are labels). It
works on :mod:`.pairing_features` with the mixture model of :mod:`.pairing_model`:

* *with labels* each slot's class is known, so an image competes only with those of its class; annealed from a
  random start, several times, the fit of largest evidence wins;
* *without labels* vectors start from clusters of near neighbours (:mod:`.pairing_seeds`). Images that come
  out twice, or as nobody's, are given up for seeds that are like none of the others (split and merge, Ueda
  et al. 2000), and the fit goes on.

The published attack (Carlini et al. 2020) learns the similarity of two encodings with a deep network on
pairs, then clusters greedily. Here no pair is classified: all encodings of an image are compared with the
image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...encoder_config import EncoderConfig
from ...errors import InvalidInputError
from .pairing_features import Features
from .pairing_model import (
    Assignment,
    Candidates,
    Vectors,
    assign,
    fit,
    random_vectors,
    synchronise,
)
from .pairing_seeds import SAME, alike, seed_vectors
from .pairing_slots import (
    Slots,
    images_per_class,
    label_slots,
    pair_coefficients,
    single_coefficients,
)
from .pairing_unlabelled import likely_pairs

POWERS = tuple(float(p) for p in np.geomspace(0.05, 0.5, 60))
POWERS_WITHOUT_LABELS = tuple(float(p) for p in np.linspace(0.5, 1.0, 10))
FINAL_STEPS = 6
ENCODINGS_OVER_RESTARTS = 15_000
RESTARTS = (2, 8)
RESEEDINGS = 2
FEW_ENCODINGS = 2_000  # with so few, a start without labels is cheap and often the better one
WEAK = 0.3  # of the median length of a vector


@dataclass(frozen=True, eq=False)
class Pairing:
    """Which private images are in each encoding, as far as the attack can tell.

    Args:
        private_rows: (N, 2) in the attack's own numbering 0..n−1.
        coefficients: (N, 2) expected λ.
        probability: (N, 2) the attack's own belief in each.
        log_evidence: (N,) log likelihood ratio of "two of these images" to "public images only".
        vectors: the images in feature coordinates.
    """

    private_rows: NDArray[np.int64]
    coefficients: NDArray[np.float32]
    probability: NDArray[np.float32]
    log_evidence: NDArray[np.float32]
    vectors: Vectors


def find_pairing(
    features: Features,
    labels: torch.Tensor | None,
    config: EncoderConfig,
    scheme: str,
    num_private_images: int,
    *,
    seed: int = 0,
    restarts: int | None = None,
    progress: Callable[..., None] | None = None,
) -> Pairing:
    """Pair encodings with private images.

    Args:
        features: of the encodings.
        labels: (N, K) soft labels, or ``None``.
        config, scheme: the public law.
        num_private_images: n; every image is taken to be used equally often.
        seed: of the attacker's random starts.
        restarts: with labels: how many; ``None``: 2 to 8, fewer for more encodings.

    Raises:
        InvalidInputError: a law with other than two private images, or more images than encodings.
    """
    num_private = config.num_mixed if scheme == "inside" else config.num_private
    if num_private != 2:
        raise InvalidInputError(
            f"the pairing handles two private images in an encoding, not {num_private}",
            hint="with a known pairing, tier decode takes any number",
        )
    if not 2 <= num_private_images <= len(features.values):
        raise InvalidInputError(
            f"{num_private_images} private images for {len(features.values)} encodings",
            hint="give n, the number of different private images; each is in at least one encoding",
        )
    with torch.inference_mode():
        if labels is None:
            vectors, groups = _without_labels(features, config, scheme, num_private_images, seed, progress)
            assignment = assign(features, groups, vectors)
        else:
            vectors, assignment = _with_labels(
                features,
                label_slots(labels, config, scheme),
                labels.shape[1],
                num_private_images,
                seed,
                restarts or int(np.clip(ENCODINGS_OVER_RESTARTS // len(labels), *RESTARTS)),
                progress,
            )
            if restarts is None and len(labels) <= FEW_ENCODINGS:
                blind = _without_labels(features, config, scheme, num_private_images, seed, progress)
                other = _labelled_afterwards(features, labels, config, scheme, *blind)
                if other[1].log_evidence.sum() > assignment.log_evidence.sum():
                    vectors, assignment = other
    return Pairing(
        assignment.images.numpy(),
        assignment.coefficients.numpy(),
        assignment.probability.numpy(),
        assignment.log_evidence.numpy(),
        vectors,
    )


def _with_labels(
    features: Features,
    slots: list[Slots],
    num_classes: int,
    count: int,
    seed: int,
    restarts: int,
    progress: Callable[..., None] | None,
) -> tuple[Vectors, Assignment]:
    groups = class_candidates(slots, num_classes, count)
    found: list[tuple[Vectors, Assignment]] = []
    for restart in range(restarts):
        generator = torch.Generator().manual_seed(seed + restart)
        vectors = random_vectors(features, count, generator)
        vectors = fit(features, groups, vectors, np.array(POWERS), signs_tied=False)
        vectors = synchronise(features, groups, vectors)
        vectors = fit(features, groups, vectors, np.ones(FINAL_STEPS), signs_tied=True)
        found.append((vectors, assign(features, groups, vectors)))
        if progress is not None:
            progress(restart + 1, restarts, "who was mixed with whom")
    return max(found, key=lambda pair: float(pair[1].log_evidence.sum()))


def class_candidates(
    slots: list[Slots], num_classes: int, count: int, *, sizes_from: list[Slots] | None = None
) -> list[Candidates]:
    """Images are numbered class by class; a slot may hold any image of its class.

    Args:
        sizes_from: rows that tell how many images a class has; ``None``: the same.
    """
    sizes = images_per_class(sizes_from or slots, num_classes, count)
    first = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    table = torch.full((num_classes, int(sizes.max())), -1)
    for c, size in enumerate(sizes):
        table[c, :size] = torch.arange(first[c], first[c] + size)
    return [
        Candidates(part.rows, table[part.classes[:, 0]], table[part.classes[:, 1]], part.coefficients)
        for part in slots
    ]


def _without_labels(
    features: Features,
    config: EncoderConfig,
    scheme: str,
    count: int,
    seed: int,
    progress: Callable[..., None] | None,
) -> tuple[Vectors, list[Candidates]]:
    singles, pairs = single_coefficients(config, scheme), pair_coefficients(config, scheme)
    generator = torch.Generator().manual_seed(seed)
    seeds = seed_vectors(features, singles, count, generator)
    vectors = random_vectors(features, count, generator)
    taken = min(len(seeds), count)
    vectors.mean[:taken] = seeds[:taken]
    seeds = seeds[taken:]

    def step(vectors: Vectors, power: float, tied: bool) -> Vectors:
        groups = [likely_pairs(features, singles, pairs, vectors)]
        return fit(features, groups, vectors, np.array([power]), signs_tied=tied)

    for attempt in range(1 + RESEEDINGS):
        if attempt:
            seeds = torch.cat([seeds, seed_vectors(features, singles, count, generator)])
            vectors, seeds = _reseeded(features, vectors, seeds, generator)
        for power in POWERS_WITHOUT_LABELS:
            vectors = step(vectors, power, False)
        if progress is not None:
            progress(attempt + 1, 1 + RESEEDINGS, "who was mixed with whom")
    vectors = synchronise(features, [likely_pairs(features, singles, pairs, vectors)], vectors)
    for _ in range(FINAL_STEPS):
        vectors = step(vectors, 1.0, True)
    return vectors, [likely_pairs(features, singles, pairs, vectors)]


def _labelled_afterwards(
    features: Features,
    labels: torch.Tensor,
    config: EncoderConfig,
    scheme: str,
    vectors: Vectors,
    groups: list[Candidates],
) -> tuple[Vectors, Assignment]:
    """A fit without labels, gone on with labels: each image joins the class its encodings name most."""
    from scipy.optimize import linear_sum_assignment

    count = len(vectors.mean)
    slots = label_slots(labels, config, scheme)
    found = assign(features, groups, vectors)
    named = torch.zeros(count, labels.shape[1])
    for slot in range(2):
        weight = found.coefficients[:, slot, None] * found.probability[:, slot, None]
        named.index_add_(0, found.images[:, slot], weight * labels)
    places = np.repeat(np.arange(labels.shape[1]), images_per_class(slots, labels.shape[1], count))
    order = torch.from_numpy(linear_sum_assignment(-named.numpy()[:, places].T)[1])
    start = Vectors(
        vectors.mean[order], vectors.covariance[order][:, order], torch.zeros_like(vectors.prices)
    )
    classes = class_candidates(slots, labels.shape[1], count)
    fitted = fit(features, classes, start, np.ones(FINAL_STEPS), signs_tied=True)
    return fitted, assign(features, classes, fitted)


def _reseeded(
    features: Features, vectors: Vectors, seeds: torch.Tensor, generator: torch.Generator
) -> tuple[Vectors, torch.Tensor]:
    """Images found twice, or hardly at all, replaced by seeds that are like none of the others."""
    mean = vectors.mean.clone()
    length = (mean / features.slope).square().mean(1)
    table = alike(mean, mean).triu(1)
    duplicate = (table > SAME).any(0)
    replaced = duplicate | (length < WEAK * length.median())
    kept = mean[~replaced]
    start = random_vectors(features, len(mean), generator)
    for row in torch.nonzero(replaced)[:, 0].tolist():
        if len(seeds):
            seeds = seeds[alike(seeds, kept).max(1).values < SAME] if len(kept) else seeds
        if len(seeds):
            mean[row], seeds = seeds[0], seeds[1:]
            kept = torch.cat([kept, mean[row][None]])
        else:
            mean[row] = start.mean[row]
    return Vectors(mean, start.covariance, vectors.prices * (~replaced)), seeds
