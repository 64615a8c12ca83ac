"""Encoder: private images in, one epoch of encodings out; every secret drawn afresh each time.

Axes: N private images, K classes, C·H·W = d values of an image, k sources of a row, V views.

InstaHide (Huang, Song, Li, Arora, ICML 2020, section 3): the encoding of image i is
σ∘(λ_0·x_i + λ_1·s_1 + … + λ_{k−1}·s_{k−1}) with fresh coefficients λ, sources s and sign mask σ; its
label is the same mixture of the private labels. It is not encryption and it is broken; SPEC.md says
by whom. Mode ``dp`` leaves the mask out and adds noise (:mod:`instahide.dp_encoding`).
This is the only door to the parts: draws are made here, used once, and dropped.

    encoder = Encoder(EncoderConfig(), private=images, public=pool)
    epoch = encoder.encode_epoch()
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from .coefficients import draw_coefficients, mix_labels
from .dp_encoding import clipped_weights, norm_factors, with_noisy_images, with_noisy_labels
from .encoded_dataset import EncodedDataset
from .encoder_config import EncoderConfig
from .errors import InvalidInputError, RefusedError
from .images import TOO_FEW_NUMBERS, ImageSet
from .mixing_kernel import (
    Recipe,
    Sources,
    is_memory_mapped,
    mix_records,
    new_output,
    release_pages,
    with_whole_images,
)
from .partners import draw_private_partners, draw_public_sources
from .randomness import Keystream, Randomness
from .sign_mask import draw_sign_bits
from .texture_filter import textured_rows

if TYPE_CHECKING:
    from .mixing_triton import GpuMixer

MIN_MASK_BITS = 128
"""Below this many values in an image its sign mask could be guessed; the encoder warns."""
_CHUNK_VALUES = 1 << 20
_MAPPED_CHUNK_VALUES = 1 << 17
"""Touching one image of a file may bring in megabytes around it, so pages are given back more often."""
_STREAMING_BYTES = 32 << 20
_CHECK_BYTES = 16 << 20


class FewPixelsWarning(UserWarning):
    """The images have so few pixels that a sign mask could be guessed."""


class Encoder:
    """Encodes one set of private images under one public law.

    Args:
        config: the law.
        private: N labelled images; row i of an epoch has image i as its own.
        public: a pool for the remaining sources ("cross" scheme), images of the same shape; ``None``
            takes all k sources from ``private`` ("inside" scheme). In ``hardened`` mode flat images of
            the pool are skipped (:mod:`instahide.texture_filter`).
        device: where encodings are made and returned: ``"cpu"``, or ``"cuda"`` (needs Triton).

    Attributes:
        config: the law as it is applied; without a pool its ``num_private`` is ``num_mixed``.
        scheme: ``"inside"`` or ``"cross"``.

    Raises:
        InvalidInputError: data the law cannot be applied to; the message says what and why.
        RefusedError: coefficient bounds that practically no draw meets; rows of a table without noise.

    Warns:
        FewPixelsWarning: images with fewer than 128 values.
    """

    def __init__(
        self, config: EncoderConfig, *, private: ImageSet, public: ImageSet | None = None, device: str = "cpu"
    ) -> None:
        self.scheme = "inside" if public is None else "cross"
        self.config = replace(config, num_private=config.num_mixed) if public is None else config
        check_private(self.config, private)
        self._private = replace(private, images=with_whole_images(private.images))
        self._norm_factors = norm_factors(self._private.images, self.config)
        self._public = (
            None if public is None else _Pool(public, usable_public_rows(self.config, private, public))
        )
        self._device = torch.device(device)
        self._gpu = self._gpu_mixer()
        self._randomness = Randomness()
        # One draw now, thrown away: bounds that hardly any draw meets are refused here, not mid-epoch.
        Draws(self._randomness, self.config).coefficients(1, self._num_bounded)

    def __repr__(self) -> str:
        return f"Encoder({self.config}, scheme={self.scheme!r}, private={self._private})"

    @property
    def partner_uses_per_epoch(self) -> int:
        """How often each private image serves as a partner in one epoch: every image equally often."""
        return self.config.num_private - 1

    @property
    def public_pool_size(self) -> int:
        """Public images in use, after the texture filter; 0 in the inside scheme."""
        return 0 if self._public is None else len(self._public.rows)

    @property
    def _num_bounded(self) -> int | None:
        """How many coefficients of a row ``min_private_sum`` is about; ``None``: it has no say."""
        return None if self._public is None else self.config.num_private

    def encode_epoch(self) -> EncodedDataset:
        """N rows in the data's order, each image once as own; fresh secrets every call."""
        return next(self.encode_batches(len(self._private)))

    def encode_batches(self, batch_size: int, *, start: int = 0) -> Iterator[EncodedDataset]:
        """One epoch in batches of ``batch_size`` rows, from row ``start`` on.

        Memory beyond the input is O(batch) plus 8 bytes an image and partner. Every call draws fresh
        secrets, the partners included: an epoch stopped at row r may be taken up with ``start=r``, but
        then an image may serve as partner up to twice ``partner_uses_per_epoch`` times.
        """
        _check_count("batch_size", batch_size, 1)
        _check_count("start", start, 0)
        if start > len(self._private):
            raise InvalidInputError(
                f"start is {start} but there are {len(self._private)} images", hint="use a row number"
            )
        return self._batches(batch_size, start)

    def encode_views(self, images: ImageSet, num_views: int) -> torch.Tensor:
        """(V, N, C, H, W) encoded queries for inference: V independent encodings of each image.

        Each query is mixed with k − 1 public images (without a public pool: private ones), under fresh
        coefficients of the same law and a fresh sign mask. The query takes the largest of its k
        coefficients, as the answer must be about the query. Averaging answers over views helps the
        user, and averaging views helps an attacker as much.

        In ``dp`` mode the noise is added here too, and without a public pool the others are further
        queries: private images stay out of it, as their releases could not be counted. Each view is
        one more release of the query.
        """
        check_same_shape("queries", images, self._private)
        _check_count("num_views", num_views, 1)
        others = self._public or self._companions(images)
        factors = norm_factors(images.images, self.config)
        queries = np.arange(len(images))[:, None]
        views = torch.empty((num_views, len(images), *images.image_shape), device=self._device)
        for view in views:
            draws = Draws(self._randomness, self.config)
            coefficients = -np.sort(-draws.coefficients(len(images), None), axis=1)
            mixed_in = others.rows[draws.public(len(others.rows), len(images), self.config.num_mixed - 1)]
            sources = [Sources(images.images, queries), Sources(others.images, mixed_in)]
            clipped = queries if self._public is not None else np.concatenate([queries, mixed_in], axis=1)
            self._mix(draws, sources, clipped_weights(coefficients, factors, clipped), view)
        return views

    def _companions(self, queries: ImageSet) -> _Pool:
        """What a query is mixed with where there is no public pool."""
        if not self.config.has_noise:
            return _Pool(self._private, np.arange(len(self._private)))
        return _Pool(queries, np.resize(np.arange(len(queries)), max(len(queries), self.config.num_mixed)))

    def _batches(self, batch_size: int, start: int) -> Iterator[EncodedDataset]:
        for batch in self._recorded_batches(batch_size, start):
            yield batch.encoded  # the draws are dropped here

    def _recorded_batches(self, batch_size: int, start: int) -> Iterator[RecordedBatch]:
        """Batches with their draws. For :mod:`instahide.attacks` alone, which plays hospital."""
        config, private = self.config, self._private
        assert private.labels is not None
        assert private.class_names is not None
        draws = Draws(self._randomness, config)
        partners = draws.partners(len(private))
        for first in range(start, len(private), batch_size):
            own = np.arange(first, min(first + batch_size, len(private)))
            rows = np.concatenate([own[:, None], partners[own]], axis=1)
            coefficients = draws.coefficients(len(own), self._num_bounded)
            images = new_output((len(own), *private.image_shape), self._device)
            sources = self._sources(draws, rows)
            self._mix(draws, sources, clipped_weights(coefficients, self._norm_factors, rows), images)
            weights_of_private = coefficients[:, : config.num_private]
            labels = mix_labels(private.labels[rows], weights_of_private, private.num_classes, config)
            if config.has_noise:
                labels = with_noisy_labels(draws.noise, labels, config)
            encoded = EncodedDataset(
                images, labels.to(self._device), private.class_names, config, self.scheme
            )
            yield RecordedBatch(encoded, tuple(part.indices for part in sources), coefficients)

    def _sources(self, draws: Draws, private_rows: NDArray[np.int64]) -> list[Sources]:
        private = Sources(self._private.images, private_rows)
        if self._public is None:
            return [private]
        num_public = self.config.num_mixed - self.config.num_private
        drawn = draws.public(len(self._public.rows), len(private_rows), num_public)
        return [private, Sources(self._public.images, self._public.rows[drawn])]

    def _mix(
        self, draws: Draws, sources: list[Sources], weights: NDArray[np.float64], out: torch.Tensor
    ) -> None:
        """Fill ``out``, a few megabytes at a time so that the key stream is used while in the caches."""
        d = int(np.prod(out.shape[1:]))
        flat = out.view(len(out), d)
        streaming = out.numel() * out.element_size() > _STREAMING_BYTES
        scale = self.config.coefficient_grid or 1  # on the grid, weights are whole numbers and sums exact
        mapped = any(is_memory_mapped(part.images) for part in sources)
        chunk = max(1, (_MAPPED_CHUNK_VALUES if mapped else _CHUNK_VALUES) // d)
        for first in range(0, len(out), chunk):
            rows = slice(first, min(first + chunk, len(out)))
            recipe = Recipe(
                [Sources(part.images, part.indices[rows]) for part in sources],
                (weights[rows] * scale).astype(np.float32),
                255.0 * scale,
                draws.sign_bits(rows.stop - rows.start, d),
                draws.dither(rows.stop - rows.start, d),
                self.config.mixing_levels,
            )
            if self._gpu is not None:
                self._gpu.mix(recipe, flat[rows])
            else:
                mix_records(recipe, flat[rows], streaming=streaming)
                for part in sources:
                    release_pages(part.images)
            if self.config.has_noise:
                flat[rows] = with_noisy_images(draws.noise, flat[rows], weights[rows], self.config)

    def _gpu_mixer(self) -> GpuMixer | None:
        if self._device.type == "cpu":
            return None
        if self._device.type != "cuda" or not torch.cuda.is_available():
            raise InvalidInputError(f"device {self._device} is not there", hint='use device="cpu"')
        try:
            from .mixing_triton import GpuMixer
        except ImportError as error:
            raise InvalidInputError(
                f"encoding on {self._device} needs Triton: {error}", hint='use device="cpu"'
            ) from error
        pools = (
            [self._private.images] if self._public is None else [self._private.images, self._public.images]
        )
        return GpuMixer(self._device, pools)


@dataclass(frozen=True, eq=False)
class RecordedBatch:
    """A batch and what the encoder forgets: rows of the sources, private ones first, and λ."""

    encoded: EncodedDataset
    source_rows: tuple[NDArray[np.int64], ...]
    coefficients: NDArray[np.float64]


class _Pool:
    """Images other than the own one may come from: rows ``rows`` of ``images``."""

    def __init__(self, images: ImageSet, rows: NDArray[np.int64]) -> None:
        self.images = with_whole_images(images.images)
        self.rows = rows


class Draws:
    """The secrets of one epoch (or view): a stream for each use, opened together and dropped together."""

    def __init__(self, randomness: Randomness, config: EncoderConfig) -> None:
        self._config = config
        self._partners, self._coefficients, self._signs, self._dither = (
            randomness.stream(purpose) for purpose in ("partners", "coefficients", "signs", "dither")
        )
        self._noise = randomness.stream("noise") if config.has_noise else None

    @property
    def noise(self) -> Keystream:
        """Of the modes that add noise; refused to the others, whose law has none."""
        assert self._noise is not None
        return self._noise

    def partners(self, num_images: int) -> NDArray[np.int64]:
        return draw_private_partners(self._partners, num_images, self._config.num_private - 1)

    def public(self, pool_size: int, count: int, num_slots: int) -> NDArray[np.int64]:
        return draw_public_sources(self._partners, pool_size, count, num_slots)

    def coefficients(self, count: int, num_private: int | None) -> NDArray[np.float64]:
        return draw_coefficients(self._coefficients, count, self._config, num_private=num_private)

    def sign_bits(self, count: int, d: int) -> NDArray[np.uint8] | None:
        return draw_sign_bits(self._signs, count, d) if self._config.has_sign_mask else None

    def dither(self, count: int, d: int) -> NDArray[np.uint8] | None:
        return None if self._config.mixing_levels is None else self._dither.read_records(count, d)


def check_private(config: EncoderConfig, private: ImageSet) -> None:
    """Refuse private images the law cannot be applied to; warn when a sign mask could be guessed."""
    if private.labels is None:
        raise InvalidInputError(
            "the private images have no labels", hint="give ImageSet(images=..., labels=...)"
        )
    if private.is_table and not config.has_noise:
        raise RefusedError(
            TOO_FEW_NUMBERS,
            hint='train on the rows as they are, with differential privacy (mode "dp" for files, DP-SGD)',
        )
    if len(private) < config.num_private:
        raise InvalidInputError(
            f"{config.num_private} different private images are mixed but there are only {len(private)}",
            hint="lower num_mixed or num_private, or add images",
        )
    if not config.has_noise:  # noise covers blank images as it covers any other
        _check_not_constant(private.images)
    d = int(np.prod(private.image_shape))
    if config.has_sign_mask and d < MIN_MASK_BITS:
        warnings.warn(
            f"an image has {d} values, so its sign mask has {d} bits: at most 2^{d} guesses, and far fewer "
            "for smooth images; use larger images",
            FewPixelsWarning,
            stacklevel=3,
        )


def usable_public_rows(config: EncoderConfig, private: ImageSet, public: ImageSet) -> NDArray[np.int64]:
    """Rows of the pool that may be mixed in; refuses a pool of another shape or with too few of them."""
    check_same_shape("public images", public, private)
    needed = config.num_mixed - config.num_private
    if needed == 0:
        raise InvalidInputError(
            f"num_private = num_mixed = {config.num_mixed} leaves no place for the public pool",
            hint="lower num_private, or give no public pool",
        )
    if config.mode != "hardened":
        rows, dropped = np.arange(len(public)), ""
    else:
        rows = textured_rows(public.images)
        dropped = f" ({len(public) - len(rows)} of {len(public)} are flat and were skipped)"
    if len(rows) < needed:
        raise InvalidInputError(
            f"the public pool has {len(rows)} usable images{dropped} but a row needs {needed} different ones",
            hint="give a larger pool with texture; thousands of natural images are sensible",
        )
    return rows


def check_same_shape(what: str, images: ImageSet, private: ImageSet) -> None:
    """Refuse images of another shape than the private ones."""
    if images.image_shape != private.image_shape:
        raise InvalidInputError(
            f"{what} are {images.image_shape}, the private images {private.image_shape} (C, H, W)",
            hint="resize them, and use the same number of channels",
        )


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InvalidInputError(f"{name} is {value!r}", hint=f"use an integer of at least {least}")


def _check_not_constant(images: NDArray[np.uint8]) -> None:
    step = max(1, _CHECK_BYTES // int(np.prod(images.shape[1:])))
    for first in range(0, len(images), step):
        part = images[first : first + step]
        constant = np.flatnonzero((part == part[:, :, :1, :1]).all(axis=(1, 2, 3)))
        release_pages(images)
        if constant.size:
            raise InvalidInputError(
                f"private image {first + int(constant[0])} is constant",
                hint="remove blank images: the encoding of one shows its coefficient",
            )
