"""What the demonstration's hospitals hold: real images, unevenly spread, and a public pool.

The default images are the 8x8 digits that ship with scikit-learn (Alpaydin and Kaynak, 1998;
1,797 scans), the default public pool is cut from the two photographs that ship with it too, so
that nothing is downloaded. Labels are spread over the hospitals by a Dirichlet law per class
(Hsu et al. 2019, "Measuring the effects of non-identical data distribution"): at
``concentration`` 0.5 most hospitals lack most of some class.

This is a demonstration with public data, so its split is seeded and repeatable; nothing here
is a secret, and none of it is used by the product's own encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from instahide.errors import InvalidInputError
from instahide.images import ImageSet

TEST_SHARE = 0.2
MAX_DEMO_IMAGES = 6000
SMALLEST_SHARE = 40  # images: fewer than this and a hospital has nothing to train on


@dataclass(frozen=True)
class Hospital:
    """One hospital's part: what it trains on and what it measures on."""

    name: str
    train: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class DemoData:
    """Everything the demonstration needs; ``test`` is the hospitals' test parts together."""

    source: str
    hospitals: tuple[Hospital, ...]
    test: ImageSet
    public: ImageSet
    held_out: ImageSet  # never trained on: the non-members of the membership test


def prepare(path: Path | None, names: Sequence[str], *, concentration: float, split_seed: int) -> DemoData:
    """Read (or take the digits), keep a test part and a held-out part, spread the rest unevenly."""
    rng = np.random.default_rng(split_seed)
    images, source = (digits(), "scikit-learn digits, 8x8") if path is None else _from_file(path)
    if images.labels is None or images.num_classes < 2:
        raise InvalidInputError(
            "the demonstration needs labelled images of two classes or more",
            hint="give a folder of label/*.png or an .npz with labels; `instahide dataset inspect` "
            "shows what is read",
        )
    order = rng.permutation(len(images))[:MAX_DEMO_IMAGES]
    num_test = round(TEST_SHARE * len(order))
    if len(order) - 2 * num_test < SMALLEST_SHARE * len(names):
        raise InvalidInputError(
            f"{len(order)} images are too few for {len(names)} hospitals",
            hint=f"give at least {round(SMALLEST_SHARE * len(names) / (1 - 2 * TEST_SHARE)) + 1} images",
        )
    test, held_out, rest = np.split(order, [num_test, 2 * num_test])
    parts = dirichlet_split(images.labels[rest], len(names), concentration=concentration, rng=rng)
    shares = np.array_split(test, len(names))
    hospitals = tuple(
        Hospital(name, images.subset(rest[part]), images.subset(share))
        for name, part, share in zip(names, parts, shares, strict=True)
    )
    public = natural_patches(images.image_shape, count=2000, rng=rng)
    return DemoData(source, hospitals, images.subset(test), public, images.subset(held_out))


def digits() -> ImageSet:
    """The 1,797 digits of scikit-learn as 8-bit images (their 17 grey levels spread over 0..255)."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pixels = np.round(loaded.images * (255 / 16)).astype(np.uint8)
    return ImageSet(images=pixels, labels=loaded.target.astype(np.int64))


def _from_file(path: Path) -> tuple[ImageSet, str]:
    from instahide.readers import load_images

    images = load_images(path)
    return images, f"{len(images)} images of {'x'.join(map(str, images.image_shape))}"


def dirichlet_split(
    labels: NDArray[np.int64], num_parts: int, *, concentration: float, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Index arrays, one a hospital: class by class in proportions drawn from Dirichlet(concentration).

    Drawn again until every part has ``SMALLEST_SHARE`` images (or, for small data, half an even share).
    """
    least = min(SMALLEST_SHARE, len(labels) // (2 * num_parts))
    for _ in range(1000):
        owner = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            proportions = rng.dirichlet(np.full(num_parts, concentration))
            cuts = np.round(np.cumsum(proportions)[:-1] * len(rows)).astype(np.int64)
            for part, chosen in enumerate(np.split(rows, cuts)):
                owner[chosen] = part
        counts = np.bincount(owner, minlength=num_parts)
        if counts.min() >= least:
            return [np.flatnonzero(owner == part) for part in range(num_parts)]
    raise InvalidInputError(
        f"no Dirichlet({concentration:g}) split leaves every hospital {least} images",
        hint="raise --concentration (10 is nearly even)",
    )


def natural_patches(shape: tuple[int, int, int], *, count: int, rng: np.random.Generator) -> ImageSet:
    """``count`` patches of scikit-learn's two sample photographs, of random place and scale, as ``shape``.

    Natural texture, unrelated to any hospital: the role ImageNet crops play in the paper.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    channels, height, width = shape
    photographs = [Image.fromarray(photo) for photo in load_sample_images().images]
    patches = np.empty((count, height, width, 3), dtype=np.uint8)
    for row in range(count):
        photo = photographs[int(rng.integers(len(photographs)))]
        zoom = float(rng.uniform(1.0, max(1.0, min(photo.width / width, photo.height / height) / 3)))
        box_width, box_height = round(width * zoom), round(height * zoom)
        left = int(rng.integers(photo.width - box_width + 1))
        top = int(rng.integers(photo.height - box_height + 1))
        box = (left, top, left + box_width, top + box_height)
        patches[row] = np.asarray(photo.resize((width, height), Image.Resampling.BOX, box=box))
    if channels == 1:
        grey = patches @ np.array([0.299, 0.587, 0.114])
        return ImageSet(images=np.round(grey).astype(np.uint8))
    return ImageSet(images=patches)


def save_part(hospital: Hospital, folder: Path) -> Path:
    """Write one hospital's images as ``images.npz`` (train and test) in its own folder."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "images.npz"
    np.savez(
        target,
        x_train=hospital.train.images,
        y_train=_labels(hospital.train),
        x_test=hospital.test.images,
        y_test=_labels(hospital.test),
        classes=np.array(hospital.train.class_names),
    )
    return target


def _labels(images: ImageSet) -> NDArray[np.int64]:
    assert images.labels is not None
    return images.labels
