"""Attack settings instead of a release: what *would* leak, if these images were encoded like this?

    [data]
    private = "scans/"            # plays the hospital's images; anything the readers understand
    public = "patches/"           # the pool to mix in; leave out for the inside scheme
    num-private-images = 100      # n, chosen at random, as evenly over the classes as they allow
    releases = 1                  # T, encodings of each image
    augment = false               # crop and mirror each image before each encoding

    [encoding]                    # as EncoderConfig, with dashes; what is left out has its default
    mode = "hardened"
    num-mixed = 4
    num-private = 2

The n images are encoded by the real encoder with fresh secrets (:mod:`.replica`); the other private images
play those that were never encoded. Nothing is charged to the exposure ledger: nothing leaves.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoder_config import EncoderConfig
from ..errors import InvalidInputError
from ..images import ImageSet
from .replica import Replica, make_replica

DATA_KEYS = ("private", "public", "num-private-images", "releases", "augment", "seed")
MIN_OTHERS = 50


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """What to encode, and how.

    Args:
        private, public: paths; ``public=None`` is the inside scheme.
        num_private_images: n.
        releases: T.
        augment: crop and mirror each image before each encoding.
        seed: of the choice of images; encodings have none.
        encoding: the law.
    """

    private: Path
    public: Path | None = None
    num_private_images: int = 100
    releases: int = 1
    augment: bool = False
    seed: int = 0
    encoding: EncoderConfig = field(default_factory=EncoderConfig)


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """A release made from settings.

    Args:
        replica: the encodings, with their truth.
        others: private images that were not encoded, with labels.
    """

    replica: Replica
    others: ImageSet


def read_settings(path: Path) -> AttackSettings:
    """The settings in a TOML file; relative paths are relative to the file.

    Raises:
        InvalidInputError: no such file, no TOML, an unknown key, or a value out of its range.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(
            f"settings {path} cannot be read: {error}", hint="`instahide attack run --help` shows an example"
        ) from error
    _refuse_unknown(values, ("data", "encoding"), "section")
    data, encoding = values.get("data", {}), values.get("encoding", {})
    if not isinstance(data, dict) or not isinstance(encoding, dict) or "private" not in data:
        raise InvalidInputError(
            f"settings {path} name no private images", hint='write [data] and private = "PATH" below it'
        )
    _refuse_unknown(data, DATA_KEYS, "key of [data]")
    law = {name.replace("-", "_"): value for name, value in encoding.items()}
    _refuse_unknown(law, tuple(item.name for item in fields(EncoderConfig)), "key of [encoding]")
    public = data.get("public")
    return AttackSettings(
        private=path.parent / str(data["private"]),
        public=None if public is None else path.parent / str(public),
        num_private_images=_count(data, "num-private-images", 100),
        releases=_count(data, "releases", 1),
        augment=bool(data.get("augment", False)),
        seed=_count(data, "seed", 0, least=0),
        encoding=EncoderConfig(**law),
    )


def rehearse(settings: AttackSettings, *, in_data_order: bool = False) -> Rehearsal:
    """Read the images and encode them; rows in random order, or as the encoder made them.

    Raises:
        InvalidInputError: no labels, too few images, or a pool of another shape.
    """
    from ..readers import load_images

    images = load_images(settings.private)
    if images.labels is None:
        raise InvalidInputError(
            f"{settings.private} has no labels", hint="one folder a class, or y in the file"
        )
    if len(images) < settings.num_private_images + MIN_OTHERS:
        raise InvalidInputError(
            f"{settings.private} has {len(images)} images; {settings.num_private_images} are to be encoded "
            f"and {MIN_OTHERS} must be left to compare with",
            hint="lower num-private-images",
        )
    inside = choose_evenly(images.labels, settings.num_private_images, settings.seed)
    outside = np.setdiff1d(np.arange(len(images)), inside)
    pool = None
    if settings.public is not None:
        C, H, W = images.image_shape
        pool = ImageSet(load_images(settings.public, image_size=H if H == W else None, channels=C).images)
    replica = make_replica(
        images.subset(inside),
        public=pool,
        config=settings.encoding,
        releases=settings.releases,
        augment=settings.augment,
        in_data_order=in_data_order,
    )
    return Rehearsal(replica, images.subset(outside))


def choose_evenly(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """``count`` rows at random, as evenly over the classes as their sizes allow, sorted."""
    order = np.random.default_rng(seed).permutation(len(labels))
    # The r-th image of its class comes before every (r + 1)-th: taking the first ones is even.
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        rank[of_class] = np.arange(len(of_class))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:count])


def _count(values: dict[str, Any], name: str, default: int, *, least: int = 1) -> int:
    value = values.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInputError(f"{name} is {value!r}", hint=f"use an integer of at least {least}")
    return value


def _refuse_unknown(values: dict[str, Any], allowed: tuple[str, ...], what: str) -> None:
    unknown = sorted(set(values) - set(allowed))
    if unknown:
        raise InvalidInputError(
            f"unknown {what} {unknown[0]!r} in the settings", hint=f"known are {', '.join(allowed)}"
        )
