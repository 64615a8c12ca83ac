"""Who has which images: hospitals of uneven sizes and uneven classes, spread over one pool of images.

Sizes are log-normal about ``images_per_hospital`` m with the standard deviation s = ``size_skew`` of their
logarithms, n_i = max(2, round(m exp(s z_i - s² / 2))), z_i standard normal, so that their mean is m. Classes
follow Hsu, Qi and Brown 2019: hospital i draws the classes of its images from Dirichlet(alpha · K · prior),
so a small alpha gives it few classes and a large one the pool's own shares; 0 means the pool's own, no draw.
Exact copies in the pool are left out first, as a site's worker leaves them out.

Images of a class are dealt out in shuffled order and from the start again when they are used up. A study of
more images than the pool has therefore gives one image to several hospitals: ``most_holders`` says to how
many, and what is learnt is then of as many *distinct* images as the pool has, not of n · m.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from instahide.atomic import atomic_write_text
from instahide.errors import InvalidInputError
from instahide.images import ImageSet

from ..site.dataset import SiteData

Indices = NDArray[np.int64]
LOCAL_TEST = 8
"""Test images of each hospital, from the test part; a run that evaluates at the sites measures on them."""


@dataclass(frozen=True, kw_only=True)
class Heterogeneity:
    """``num_hospitals`` of about ``images_per_hospital`` images; see the head of this file."""

    num_hospitals: int = 100
    images_per_hospital: int = 40
    alpha: float = 1.0
    size_skew: float = 0.0
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        limits = (
            ("--hospitals", self.num_hospitals, 2, 100_000),
            ("--images-per-hospital", self.images_per_hospital, 2, 1_000_000),
            ("--alpha", self.alpha, 0.0, 1e6),
            ("--size-skew", self.size_skew, 0.0, 3.0),
        )
        for name, value, least, most in limits:
            if not least <= value <= most:
                raise InvalidInputError(f"{name} is {value:g}", hint=f"from {least:g} to {most:g}")


@dataclass(frozen=True)
class Population:
    """The pool (N images), each hospital's rows of it, and the rows that are kept for testing."""

    images: ImageSet
    training: tuple[Indices, ...]
    test: Indices

    @property
    def names(self) -> dict[int, str]:
        """Number from 1 → name."""
        return {number: f"hospital-{number:05d}" for number in range(1, len(self.training) + 1)}

    def data(self, number: int) -> SiteData:
        """The images of hospital ``number``."""
        first = (number - 1) * LOCAL_TEST
        local = np.take(self.test, np.arange(first, first + LOCAL_TEST), mode="wrap")
        return SiteData(self.images.subset(self.training[number - 1]), self.images.subset(local))

    def facts(self) -> dict[str, Any]:
        """Figures of the spread, for the report."""
        sizes = np.array([len(rows) for rows in self.training])
        holders = np.bincount(np.concatenate([np.unique(rows) for rows in self.training]))
        labels = _labels(self.images)
        classes = [len(np.unique(labels[rows])) for rows in self.training]
        return {
            "hospitals": len(sizes),
            "images": int(sizes.sum()),
            "distinct-images": int((holders > 0).sum()),
            "most-holders": int(holders.max()),
            "smallest": int(sizes.min()),
            "median": float(np.median(sizes)),
            "largest": int(sizes.max()),
            "mean-classes": float(np.mean(classes)),
            "test-images": len(self.test),
        }

    def save(self, folder: Path) -> None:
        """Write the population for other processes, which map the images instead of copying them."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "images.npy", self.images.images)
        np.save(folder / "labels.npy", _labels(self.images))
        np.save(folder / "test.npy", self.test)
        np.save(folder / "training.npy", np.concatenate(self.training))
        np.save(folder / "sizes.npy", np.array([len(rows) for rows in self.training]))
        names = json.dumps(list(self.images.class_names or ()))
        atomic_write_text(folder / "classes.json", names)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What ``save`` wrote."""
        images = np.load(folder / "images.npy", mmap_mode="r")
        names = tuple(json.loads((folder / "classes.json").read_text(encoding="utf-8")))
        pool = ImageSet(images, np.load(folder / "labels.npy"), class_names=names)
        cuts = np.cumsum(np.load(folder / "sizes.npy"))[:-1]
        parts = np.split(np.load(folder / "training.npy"), cuts)
        return cls(pool, tuple(parts), np.load(folder / "test.npy"))


def spread(images: ImageSet, settings: Heterogeneity) -> Population:
    """Keep a test part of ``images`` and deal the others out.

    Raises InvalidInputError for images without labels, or of fewer than two classes.
    """
    if images.labels is None or images.num_classes < 2:
        raise InvalidInputError(
            "the images need labels of two classes or more", hint="`instahide dataset inspect` shows them"
        )
    images = _without_copies(images)
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(len(images))
    num_test = max(LOCAL_TEST, round(settings.test_fraction * len(images)))
    test, pool = np.sort(order[:num_test]), order[num_test:]
    if len(pool) < 2:
        raise InvalidInputError(f"{len(images)} images are too few", hint="give more images with --data")
    labels = _labels(images)
    decks = [_Deck(pool[labels[pool] == label], rng) for label in range(images.num_classes)]
    prior = np.array([len(deck.rows) for deck in decks], dtype=np.float64)
    prior /= prior.sum()
    parts = []
    for size in _sizes(settings, rng):
        shares = prior
        if settings.alpha > 0:
            shares = rng.dirichlet(np.maximum(settings.alpha * len(decks) * prior, 1e-6))
            shares = np.where(prior > 0, shares, 0.0)
            shares /= shares.sum()
        counts = rng.multinomial(size, shares)
        dealt = [deck.deal(count) for deck, count in zip(decks, counts, strict=True) if count]
        parts.append(np.sort(np.concatenate(dealt)))
    return Population(images, tuple(parts), test)


def _sizes(settings: Heterogeneity, rng: np.random.Generator) -> list[int]:
    skew = settings.size_skew
    factors = np.exp(skew * rng.standard_normal(settings.num_hospitals) - skew**2 / 2)
    return [max(2, round(settings.images_per_hospital * float(factor))) for factor in factors]


class _Deck:
    """The rows of one class, dealt in shuffled order and shuffled anew when they are used up."""

    def __init__(self, rows: Indices, rng: np.random.Generator) -> None:
        self.rows, self._rng = rows, rng
        self._left: list[int] = []

    def deal(self, count: int) -> Indices:
        """``count`` rows, none twice: a hospital that wants more than there are gets all of them."""
        dealt: list[int] = []
        seen: set[int] = set()
        while len(dealt) < min(count, len(self.rows)):
            if not self._left:
                self._left = self._rng.permutation(self.rows).tolist()
            row = self._left.pop()
            if row not in seen:
                seen.add(row)
                dealt.append(row)
        return np.array(dealt, dtype=np.int64)


def _without_copies(images: ImageSet) -> ImageSet:
    pixels = np.ascontiguousarray(images.images).reshape(len(images), -1)
    _, first = np.unique(pixels, axis=0, return_index=True)
    return images if len(first) == len(images) else images.subset(np.sort(first))


def _labels(images: ImageSet) -> Indices:
    assert images.labels is not None
    return images.labels
