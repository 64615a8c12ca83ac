"""The site's registered data: training images, test images, public pool, and a card about them.

The first start registers the data: ``dataset.json`` in the state folder records the counts and
a keyed hash of the content (the ledger's salt is the key, so the hash means nothing elsewhere).
A later start with other images is refused until someone says that the change is meant, because
budgets, counts and results are about these images. Nothing of the card leaves the site but the
number of training images, which a weighted mean needs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from instahide.atomic import atomic_write_text
from instahide.errors import IntegrityError, InvalidInputError, RefusedError
from instahide.images import TOO_FEW_NUMBERS, ImageSet

from ..messages import RoundRequest
from .worker_config import WorkerConfig

if TYPE_CHECKING:  # it brings torch, which reading images does not need
    from instahide.exposure import ExposureLedger

logger = logging.getLogger(__name__)

CARD_NAME = "dataset.json"
CARD_VERSION = 1
_TWO_TO_64 = 2**64


@dataclass(frozen=True, eq=False)
class SiteData:
    """N training images and M test images of one shape and one list of K classes; a public pool or none."""

    training: ImageSet
    test: ImageSet
    public: ImageSet | None = None

    def __post_init__(self) -> None:
        for name, images in (("test", self.test), ("public", self.public)):
            if images is not None and images.image_shape != self.training.image_shape:
                raise InvalidInputError(
                    f"{name} images are {images.image_shape}, not {self.training.image_shape} (C, H, W)",
                    hint="bring all images of the site to one size",
                )
        if self.training.labels is None or self.test.labels is None:
            raise InvalidInputError("training and test images need labels", hint="label both")
        if len(self.test) == 0 or len(self.training) == 0:
            raise InvalidInputError(
                f"{len(self.training)} training and {len(self.test)} test images",
                hint="give test-data, or more images to hold a part out of",
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names in label order."""
        return self.training.class_names or ()

    def check_fits(self, request: RoundRequest) -> None:
        """Raise RefusedError unless ``request`` is for data like this site's: classes, shape, encodable."""
        if request.class_names != self.class_names:
            raise RefusedError(
                "the run's class names are not this site's",
                hint="class-names must be the federation's list, in the same order at every site",
            )
        if request.image_shape != self.training.image_shape:
            raise RefusedError(
                f"the run has images of shape {list(request.image_shape)}; this site's are "
                f"{list(self.training.image_shape)}",
                hint="set image-shape to the size agreed for the federation",
            )
        if self.training.is_table and request.encoding != "none":
            raise RefusedError(
                TOO_FEW_NUMBERS,
                hint="set encoding to none; secure-aggregation and differential-privacy example protect rows",
            )


def load_site_data(config: WorkerConfig) -> SiteData:
    """Read what ``worker.toml`` names: test images from ``test-data``, else the data's own test split,
    else held out of the training images.

    Raises:
        InvalidInputError: unreadable data, or sets that do not fit together.
    """
    training, split = _read(config, config.data, config.class_names)
    names = training.class_names
    if config.test_data:
        test = _read_test(config, config.test_data, names)
    elif split == "train" and _has_test_split(config, config.data):
        test = _read_test(config, config.data, names)
    else:
        training, test = hold_out(training, config.test_fraction)
    public = _read(config, config.public_data, None)[0] if config.public_data else None
    return SiteData(training, test, public)


def _read(
    config: WorkerConfig, written: str, names: tuple[str, ...] | None, split: Any = None
) -> tuple[ImageSet, str]:
    """The images and the split they are; files set aside are counted in the log, never named."""
    from instahide.readers import read_images

    reading = read_images(
        config.path(written),
        split=split,
        image_size=config.image_size,
        channels=config.image_channels,
        class_names=names,
    )
    if reading.quarantined:
        logger.warning("%d files set aside; `instahide dataset inspect` lists them", len(reading.quarantined))
    if reading.notes:  # they name files
        logger.warning("slices of volumes are missing or doubled; `instahide dataset inspect` tells which")
    return reading.images, reading.split


def _read_test(config: WorkerConfig, written: str, names: tuple[str, ...] | None) -> ImageSet:
    split = "test" if _has_test_split(config, written) else None
    return _read(config, written, names, split)[0]


def _has_test_split(config: WorkerConfig, written: str) -> bool:
    from instahide.readers.formats import find_catalogue
    from instahide.readers.limits import Limits

    return any(part.split == "test" for part in find_catalogue(config.path(written), Limits()).parts)


def hold_out(images: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet]:
    """(training, test): about ``fraction`` of the images held out, whole subjects at a time.

    The side of an image follows from a hash of its subject id, or without one of its pixels. So
    it is the same at every start, equal pictures lie on one side, and an image added to the
    folder moves no other: an image once tested on is never trained on.
    """
    keys: list[bytes]
    if images.subject_ids is not None:
        keys = [subject.encode("utf-8") for subject in images.subject_ids]
    else:
        keys = [np.ascontiguousarray(image).tobytes() for image in images.images]
    shares = [int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / _TWO_TO_64 for key in keys]
    held: NDArray[np.bool_] = np.array(shares, dtype=np.float64) < fraction
    return images.subset(~held), images.subset(held)


def register(
    data: SiteData, ledger: ExposureLedger, state_folder: Path, *, accept_changes: bool = False
) -> None:
    """Write the card of ``data`` at the first start; compare it at every later one.

    Raises:
        RefusedError: the images are not the registered ones and ``accept_changes`` is false.
        IntegrityError: the card cannot be read.
    """
    path = state_folder / CARD_NAME
    card = _card(data, ledger)
    if path.exists() and not accept_changes:
        registered = _read_card(path)
        changed = sorted(key for key in card if registered.get(key) != card[key])
        if changed:
            raise RefusedError(
                f"the site's data are not the registered ones: {', '.join(changed)} changed",
                hint="if the change is meant, start the worker once with --accept-changed-data",
            )
    atomic_write_text(path, json.dumps(card, indent=2) + "\n", mode=0o600)


def registered_counts(state_folder: Path) -> dict[str, int] | None:
    """Training, test and public images that are registered, by their key in the card; None before that.

    Raises IntegrityError if the card cannot be read.
    """
    path = state_folder / CARD_NAME
    if not path.exists():
        return None
    card = _read_card(path)
    names = ("num-training-images", "num-test-images", "num-public-images")
    return {name: int(card.get(name, 0)) for name in names}


def _card(data: SiteData, ledger: ExposureLedger) -> dict[str, Any]:
    assert data.training.labels is not None
    per_class = np.bincount(data.training.labels, minlength=data.training.num_classes)
    return {
        "format-version": CARD_VERSION,
        "num-training-images": len(data.training),
        "num-test-images": len(data.test),
        "num-public-images": 0 if data.public is None else len(data.public),
        "class-names": list(data.class_names),
        "training-images-per-class": per_class.tolist(),
        "image-shape": list(data.training.image_shape),
        "training-commitment": ledger.commitment(data.training),
        "test-commitment": ledger.commitment(data.test),
    }


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{CARD_NAME} cannot be read", hint="restore it, or --accept-changed-data"
        ) from error
    if not isinstance(card, dict) or card.get("format-version") != CARD_VERSION:
        raise IntegrityError(f"{CARD_NAME} is not a data card of version {CARD_VERSION}", hint="restore it")
    return card
