"""Releases whose truth is known, made by the real encoder from images that are the bench's own.

Axes: n private images, T releases of each, N = n·T encodings, K classes, C·H·W values of an image.

An attack can be *scored* only where somebody knows what went in. A replica plays the hospital: it
encodes n images T times under a law (the InstaHide challenge of 2020 is n = 100, T = 50, k = 6 with
two private, 5,000 encodings of 32×32×3) and keeps sources and coefficients, which
:class:`instahide.Encoder` forgets. Its secrets come from the operating system like all others, so
two replicas of the same images differ; sign masks are not kept even here, since |x| hides them as
little as x does. Rows are in random order: their place tells nothing.

What an attack gets is :meth:`Replica.view`; the truth goes to the scoring functions only.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..augmentation import augment_batch
from ..encoded_dataset import EncodedDataset
from ..encoder import Encoder, FewPixelsWarning
from ..encoder_config import EncoderConfig
from ..errors import InvalidInputError
from ..images import ImageSet
from ..randomness import Randomness
from .encodings_file import read_array
from .view import AttackerView


@dataclass(frozen=True, eq=False)
class Truth:
    """What went into N encodings.

    Args:
        images: the n private images with their labels.
        private_rows: (N, k_priv) rows of ``images``, the own image first.
        coefficients: (N, k) λ, those of the private sources first.
        public_rows: (N, k − k_priv) rows of the public pool; no columns in the inside scheme.
    """

    images: ImageSet
    private_rows: NDArray[np.int64]
    coefficients: NDArray[np.float64]
    public_rows: NDArray[np.int64]

    @property
    def private_coefficients(self) -> NDArray[np.float64]:
        """(N, k_priv) λ of the private sources."""
        return self.coefficients[:, : self.private_rows.shape[1]]


@dataclass(frozen=True, eq=False)
class Replica:
    """Encodings of the bench's own images, and what went into them.

    Args:
        encoded: N = n·T rows, in random order unless asked otherwise.
        public: the pool the public sources were drawn from; ``None`` in the inside scheme.
        releases: T.
        truth: for scoring only.
    """

    encoded: EncodedDataset
    public: ImageSet | None
    releases: int
    truth: Truth

    def view(
        self, public_images: ImageSet | None = None, *, show_labels: bool = True, show_pool: bool = True
    ) -> AttackerView:
        """What an attacker sees; ``public_images`` default to the pool."""
        similar = public_images or self.public
        if similar is None:
            raise InvalidInputError(
                "the inside scheme has no public pool to take statistics from",
                hint="give public_images, some hundred images of the same kind",
            )
        pool = self.public if show_pool else None
        return AttackerView.of(self.encoded, similar, public_pool=pool, show_labels=show_labels)


def make_replica(
    private: ImageSet,
    *,
    public: ImageSet | None,
    config: EncoderConfig,
    releases: int,
    augment: bool = False,
    in_data_order: bool = False,
) -> Replica:
    """Encode ``private`` ``releases`` times with fresh secrets, and remember what went in.

    Args:
        augment: crop and mirror every private image at random before each encoding, as a training run
            may; the truth keeps the images as they were.
        in_data_order: row i of each of the T epochs is image i, as the encoder made them.

    Raises:
        InvalidInputError: fewer than one release, or data the law cannot be applied to.
    """
    if releases < 1:
        raise InvalidInputError(f"releases is {releases}", hint="use 1 or more")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewPixelsWarning)  # a warning to those who encode
        epochs = [
            batch
            for images in _as_released(private, releases, augment)
            for batch in Encoder(config, private=images, public=public)._recorded_batches(len(private), 0)
        ]
    count = releases * len(private)
    order = np.arange(count) if in_data_order else Randomness().stream("partners").permutation(count)
    first = epochs[0].encoded
    encoded = EncodedDataset(
        torch.cat([epoch.encoded.images for epoch in epochs])[torch.from_numpy(order)],
        torch.cat([epoch.encoded.labels for epoch in epochs])[torch.from_numpy(order)],
        first.class_names,
        first.config,
        first.scheme,
    )
    has_pool = public is not None
    none = np.empty((len(order), 0), dtype=np.int64)
    public_rows = np.concatenate([epoch.source_rows[1] for epoch in epochs])[order] if has_pool else none
    truth = Truth(
        private,
        np.concatenate([epoch.source_rows[0] for epoch in epochs])[order],
        np.concatenate([epoch.coefficients for epoch in epochs])[order],
        public_rows,
    )
    return Replica(encoded, public, releases, truth)


def _as_released(private: ImageSet, releases: int, augment: bool) -> Iterator[ImageSet]:
    generator = torch.Generator()
    generator.manual_seed(secrets.randbits(63))
    for _ in range(releases):
        if not augment:
            yield private
            continue
        # The crop's border is 0 in [-1, 1], the grey of pixel 127.5; 128 is the nearest.
        shifted = torch.from_numpy(private.images.astype(np.int16) - 128)
        pixels = (augment_batch(shifted, generator=generator) + 128).to(torch.uint8).numpy()
        yield replace(private, images=pixels)


def save_arrays(replica: Replica, folder: Path) -> None:
    """``encoded.npz`` (encodings, labels), ``public.npz`` (x) and ``truth.npz``, as the attacks take them."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "encoded.npz",
        encodings=replica.encoded.images.numpy(),
        labels=replica.encoded.labels.numpy(),
    )
    if replica.public is not None:
        np.savez(folder / "public.npz", x=replica.public.images)
    truth = replica.truth
    assert truth.images.labels is not None  # the encoder asks for them
    np.savez(
        folder / "truth.npz",
        images=truth.images.images,
        labels=truth.images.labels,
        private_rows=truth.private_rows,
        coefficients=truth.coefficients,
        public_rows=truth.public_rows,
    )


def read_truth(path: Path) -> Truth:
    """The truth of an ``.npz`` with ``images`` and ``private_rows``; scores need neither λ nor the pool."""
    rows = read_array(path, ("private_rows",)).astype(np.int64)
    images = ImageSet(read_array(path, ("images",)))
    return Truth(images, rows, np.empty((len(rows), 0)), np.empty((len(rows), 0), dtype=np.int64))
