"""Encoder: private images in, one epoch of encodings out; every secret drawn afresh each time.

Axes: N private images, K classes, C·H·W = d values of an image, k sources of a row, V views.

InstaHide (Huang, Song, Li, Arora, ICML 2020, section 3): the encoding of image i is
σ∘(λ_0·x_i + λ_1·s_1 + … + λ_{k−1}·s_{k−1}) with fresh coefficients λ, sources s and sign mask σ; its
label is the same mixture of the private labels. It is not encryption and it is broken; SPEC.md says
by whom. This is the only door to the parts: draws are made here, used once, and dropped.

    encoder = Encoder(EncoderConfig(), private=images, public=pool)
    epoch = encoder.encode_epoch()
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from .coefficients import draw_coefficients, mix_labels
from .encoded_dataset import EncodedDataset
from .encoder_config import EncoderConfig
from .errors import InvalidInputError
from .images import ImageSet
from .mixing_kernel import Recipe, Sources, mix_records
from .partners import draw_private_partners, draw_public_sources
from .randomness import Keystream, Randomness
from .sign_mask import draw_sign_bits

MIN_MASK_BITS = 128
"""Below this many values in an image its sign mask could be guessed; the encoder warns."""
_CHUNK_VALUES = 1 << 20


class FewPixelsWarning(UserWarning):
    """The images have so few pixels that a sign mask could be guessed."""


class Encoder:
    """Encodes one set of private images under one public law.

    Args:
        config: the law.
        private: N labelled images; row i of an epoch has image i as its own.
        public: a pool for the remaining sources ("cross" scheme), images of the same shape; ``None``
            takes all k sources from ``private`` ("inside" scheme).

    Raises:
        InvalidInputError: data the law cannot be applied to; the message says what and why.
    """

    def __init__(self, config: EncoderConfig, *, private: ImageSet, public: ImageSet | None = None) -> None:
        self.scheme = "inside" if public is None else "cross"
        self.config = replace(config, num_private=config.num_mixed) if public is None else config
        _check_data(self.config, private, public)
        self._private = private
        self._public = public
        self._public_rows = None if public is None else np.arange(len(public))
        self._randomness = Randomness()

    def __repr__(self) -> str:
        return (
            f"Encoder({self.config}, scheme={self.scheme!r}, private={self._private}, public={self._public})"
        )

    @property
    def partner_uses_per_epoch(self) -> int:
        """How often each private image serves as a partner in one epoch: every image equally often."""
        return self.config.num_private - 1

    def encode_epoch(self) -> EncodedDataset:
        """N rows in the data's order, each image once as own; fresh secrets every call."""
        return next(self.encode_batches(max(1, len(self._private))))

    def encode_batches(self, batch_size: int, *, start: int = 0) -> Iterator[EncodedDataset]:
        """One epoch in batches of ``batch_size`` rows, from row ``start`` on; O(batch) memory beyond the input.

        Every call draws fresh secrets, the partners included: an epoch stopped at row r and taken up with
        ``start=r`` is safe, but an image may serve as partner up to twice ``partner_uses_per_epoch`` times.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InvalidInputError(f"batch_size is {batch_size!r}", hint="use a positive integer")
        if not 0 <= start <= len(self._private):
            raise InvalidInputError(
                f"start is {start} of {len(self._private)} images", hint="use a row number"
            )
        return self._batches(batch_size, start)

    def _batches(self, batch_size: int, start: int) -> Iterator[EncodedDataset]:
        config, private = self.config, self._private
        assert private.labels is not None
        draws = _Draws(self._randomness, config, num_public=len(self._pool()))
        partners = draws.partners(len(private))
        for first in range(start, len(private), batch_size):
            own = np.arange(first, min(first + batch_size, len(private)))
            sources = np.concatenate([own[:, None], partners[own]], axis=1)
            images = torch.empty((len(own), *private.image_shape), dtype=torch.float32)
            coefficients = draws.coefficients(len(own), config.num_private if self._public else None)
            self._mix(draws, Sources(private.images, sources), coefficients, images)
            labels = mix_labels(
                private.labels[sources], coefficients[:, : config.num_private], private.num_classes, config
            )
            names = private.class_names or ()
            yield EncodedDataset(images, labels, names, config, self.scheme)

    def encode_views(self, images: ImageSet, num_views: int) -> torch.Tensor:
        """(V, N, C, H, W) encoded queries for inference: V independent encodings of each image.

        Each query is mixed with k − 1 public images (without a public pool: private ones), under fresh
        coefficients of the same law and a fresh sign mask. The query takes the largest of its k
        coefficients: an answer must be about the query. Averaging over views helps the model and the
        attacker alike.
        """
        if images.image_shape != self._private.image_shape:
            raise InvalidInputError(
                f"queries are {images.image_shape}, the encoder's images {self._private.image_shape}",
                hint="resize the queries",
            )
        if isinstance(num_views, bool) or not isinstance(num_views, int) or num_views < 1:
            raise InvalidInputError(f"num_views is {num_views!r}", hint="use a positive integer")
        pool = self._private.images if self._public is None else self._public.images
        rows = np.arange(len(pool)) if self._public_rows is None else self._public_rows
        views = torch.empty((num_views, len(images), *images.image_shape), dtype=torch.float32)
        queries = np.arange(len(images))[:, None]
        for view in views:
            draws = _Draws(self._randomness, self.config, num_public=len(rows))
            coefficients = -np.sort(-draws.coefficients(len(images), None), axis=1)
            others = rows[draws.public(len(images), self.config.num_mixed - 1)]
            parts = [Sources(images.images, queries), Sources(pool, others)]
            self._mix_parts(draws, parts, coefficients, view)
        return views

    def _pool(self) -> NDArray[np.int64]:
        return np.arange(0) if self._public_rows is None else self._public_rows

    def _mix(
        self, draws: _Draws, private: Sources, coefficients: NDArray[np.float64], out: torch.Tensor
    ) -> None:
        parts = [private]
        if self._public is not None:
            num_public = self.config.num_mixed - self.config.num_private
            parts.append(
                Sources(self._public.images, self._pool()[draws.public(len(coefficients), num_public)])
            )
        self._mix_parts(draws, parts, coefficients, out)

    def _mix_parts(
        self, draws: _Draws, parts: list[Sources], coefficients: NDArray[np.float64], out: torch.Tensor
    ) -> None:
        d = int(np.prod(out.shape[1:]))
        scale = self.config.coefficient_grid or 1
        flat = out.view(len(out), d)
        chunk = max(1, _CHUNK_VALUES // d)
        for first in range(0, len(out), chunk):
            rows = slice(first, min(first + chunk, len(out)))
            count = rows.stop - rows.start
            recipe = Recipe(
                [Sources(part.images, part.indices[rows]) for part in parts],
                (coefficients[rows] * scale).astype(np.float32),
                255.0 * scale,
                draws.sign_bits(count, d),
                draws.dither(count, d),
                self.config.quantization_levels,
            )
            mix_records(recipe, flat[rows])


class _Draws:
    """The secrets of one epoch (or view): four streams, opened together and dropped together."""

    def __init__(self, randomness: Randomness, config: EncoderConfig, *, num_public: int) -> None:
        self._config = config
        self._num_public = num_public
        self._partners: Keystream = randomness.stream("partners")
        self._coefficients: Keystream = randomness.stream("coefficients")
        self._signs: Keystream = randomness.stream("signs")
        self._dither: Keystream = randomness.stream("dither")

    def partners(self, num_images: int) -> NDArray[np.int64]:
        return draw_private_partners(self._partners, num_images, self._config.num_private - 1)

    def public(self, count: int, num_slots: int) -> NDArray[np.int64]:
        return draw_public_sources(self._partners, self._num_public, count, num_slots)

    def coefficients(self, count: int, num_private: int | None) -> NDArray[np.float64]:
        return draw_coefficients(self._coefficients, count, self._config, num_private=num_private)

    def sign_bits(self, count: int, d: int) -> NDArray[np.uint8] | None:
        return draw_sign_bits(self._signs, count, d) if self._config.has_sign_mask else None

    def dither(self, count: int, d: int) -> NDArray[np.uint8] | None:
        return None if self._config.quantization_bits is None else self._dither.read_records(count, d)


def _check_data(config: EncoderConfig, private: ImageSet, public: ImageSet | None) -> None:
    if private.labels is None:
        raise InvalidInputError(
            "the private images have no labels", hint="give ImageSet(images=..., labels=...)"
        )
    if len(private) < config.num_private:
        raise InvalidInputError(
            f"{config.num_private} private images are mixed but there are only {len(private)}",
            hint="lower num_mixed or num_private, or add images",
        )
    _check_not_constant(private)
    d = int(np.prod(private.image_shape))
    if config.has_sign_mask and d < MIN_MASK_BITS:
        warnings.warn(
            f"an image has {d} values, so a sign mask of {d} bits hides it: 2^{d} guesses, and fewer for "
            "smooth images; use larger images",
            FewPixelsWarning,
            stacklevel=3,
        )
    if public is None:
        return
    if public.image_shape != private.image_shape:
        raise InvalidInputError(
            f"public images are {public.image_shape}, private ones {private.image_shape} (C, H, W)",
            hint="resize or convert the public images",
        )
    num_public = config.num_mixed - config.num_private
    if num_public == 0:
        raise InvalidInputError(
            f"num_private = num_mixed = {config.num_mixed} leaves no place for the public pool",
            hint="lower num_private, or give no public pool",
        )
    if len(public) < num_public:
        raise InvalidInputError(
            f"the public pool has {len(public)} images but a row needs {num_public} different ones",
            hint="give a larger pool; thousands of images are sensible",
        )


def _check_not_constant(private: ImageSet) -> None:
    step = max(1, (64 << 20) // int(np.prod(private.image_shape)))
    for first in range(0, len(private), step):
        images = private.images[first : first + step]
        flat = (images == images[:, :, :1, :1]).all(axis=(1, 2, 3))
        if flat.any():
            raise InvalidInputError(
                f"private image {first + int(np.flatnonzero(flat)[0])} is constant ({int(flat.sum())} such "
                "images in this part of the data)",
                hint="remove blank images; the encoding of one shows its coefficient",
            )
