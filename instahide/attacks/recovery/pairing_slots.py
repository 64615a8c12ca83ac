"""What the labels say about the private images of an encoding: whose class, and how much of each.

Axes: N encodings, n private images, K classes, G hypotheses about the coefficients of one encoding.

With two private images of classes a ≠ b the soft label has two entries. In ``compat`` they *are* the two
coefficients. If both images have one class there is one entry: their sum is known, its split is not. Where
labels are renormalised (``hardened``, ``mixup``) only the ratio is known; the private sum has a public law.
Without labels nothing is known but the law. What is not known is kept as G hypotheses: cells of equal
probability of the law, each at its mean.

How many private images a class has follows from equal use: every image is in 2N/n encodings, so class c has
n · (entries of c, two for a row with one entry) / 2N of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...encoder_config import EncoderConfig
from .simulated_mixtures import simulate_coefficients

NUM_LAW_DRAWS = 20_000
SPLITS = (0.15, 0.5, 0.85)  # means of thirds of the law of λ0 / (λ0 + λ1), roughly uniform
LABEL_FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class Slots:
    """Rows of one kind: the classes of the two slots, and hypotheses about their coefficients.

    Args:
        rows: (B,) rows of the encodings.
        classes: (B, 2).
        coefficients: (B, G, 2).
    """

    rows: torch.Tensor
    classes: torch.Tensor
    coefficients: torch.Tensor


def label_slots(labels: torch.Tensor, config: EncoderConfig, scheme: str) -> list[Slots]:
    """Rows with two classes and rows with one, from (N, K) soft labels.

    Labels with noise have weight in every class: the two largest are taken for the truth.
    """
    weights, classes = labels.topk(2, dim=1)
    lonely = weights[:, 1] <= LABEL_FLOOR
    sums = private_sums(config, scheme) if config.renormalizes_labels else torch.ones(1)
    groups = []
    for one_class in (False, True):
        rows = torch.nonzero(lonely == one_class)[:, 0]
        if not len(rows):
            continue
        if one_class:
            splits = torch.tensor(SPLITS)
            shares = torch.stack([splits, 1 - splits], 1) * weights[rows, :1, None]
            pair = classes[rows, :1].expand(-1, 2)
        else:
            shares, pair = weights[rows][:, None], classes[rows]
        coefficients = (shares[:, :, None] * sums[None, None, :, None]).flatten(1, 2)
        groups.append(Slots(rows, pair, coefficients))
    return groups


def private_sums(config: EncoderConfig, scheme: str, cells: int = 3) -> torch.Tensor:
    """(cells,) private sums λ0 + λ1 the law gives, each the mean of a cell of equal probability."""
    drawn = _law(config, scheme).sum(1)
    if np.ptp(drawn) < 1e-6:
        return torch.ones(1)
    return torch.tensor([part.mean() for part in np.array_split(np.sort(drawn), cells)], dtype=torch.float32)


def single_coefficients(config: EncoderConfig, scheme: str, cells: int = 5) -> torch.Tensor:
    """(cells,) values of one private coefficient, cell means of the law."""
    drawn = np.sort(_law(config, scheme).ravel())
    return torch.tensor([part.mean() for part in np.array_split(drawn, cells)], dtype=torch.float32)


def pair_coefficients(config: EncoderConfig, scheme: str, cells: int = 3) -> torch.Tensor:
    """(cells², 2) values of both private coefficients: each split of the law's sum in each cell of it."""
    sums = private_sums(config, scheme, cells)
    splits = torch.tensor(SPLITS)
    shares = torch.stack([splits, 1 - splits], 1)
    return (sums[:, None, None] * shares).flatten(0, 1)


def images_per_class(groups: list[Slots], num_classes: int, num_private_images: int) -> NDArray[np.int64]:
    """(K,) private images of each class by equal use; they sum to n (largest remainders)."""
    entries = np.zeros(num_classes)
    for group in groups:
        entries += np.bincount(group.classes.numpy().ravel(), minlength=num_classes)
    shares = entries / entries.sum() * num_private_images
    counts: NDArray[np.int64] = np.floor(shares).astype(np.int64)
    # A class that occurs at all has an image.
    counts[(entries > 0) & (counts == 0)] = 1
    while counts.sum() < num_private_images:
        counts[np.argmax(shares - counts)] += 1
    while counts.sum() > num_private_images:
        candidates = np.where(counts > 1, shares - counts, np.inf)
        counts[np.argmin(candidates)] -= 1
    return counts


def _law(config: EncoderConfig, scheme: str) -> NDArray[np.float32]:
    drawn = simulate_coefficients(np.random.default_rng(0), NUM_LAW_DRAWS, config, scheme=scheme)
    return drawn[:, : config.num_private]
