"""Weak encoders on purpose: releases in which an audit must find what was planted.

Axes: n private images, T epochs, N = n·T encodings, k sources, C·H·W = d values of an image.

The real encoder cannot make these mistakes, so they are written out here, one switch each; all that is not
switched is done soundly, with :mod:`instahide.randomness` and the encoder's own laws. The mistakes
are those found in published code: seeded framework generators, a pool of masks, one mask for three
channels, a batch's coefficients used twice, an image mixed with itself, the same partners every epoch,
public sources from the first n images only, values kept in floating point.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ...coefficients import draw_coefficients
from ...encoder_config import EncoderConfig
from ...images import ImageSet
from ...partners import draw_private_partners, draw_public_sources
from ...randomness import Randomness
from ..replica import Truth
from .release import Release
from .seed_laws import SeedLaw


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What to do wrong; nothing by default.

    Args:
        coefficients_from: law and seed that draw the coefficients.
        mask_seed: ``torch.manual_seed`` of the masks.
        mask_pool: so many masks, one picked for each encoding.
        one_mask_for_channels: the same mask in every channel.
        repeated_coefficients: the last so many rows use those of the first once more.
        mixes_with_itself: partners are plain permutations, so an image may be its own partner.
        same_partners: the partners of the first epoch serve in all.
        first_public_only: public sources come from so many images at the start of the pool.
        double_precision: encodings and labels in float64.
        pixel_values: (C, 256) values of 8-bit pixels, other than the symmetric range.
    """

    coefficients_from: tuple[SeedLaw, int] | None = None
    mask_seed: int | None = None
    mask_pool: int | None = None
    one_mask_for_channels: bool = False
    repeated_coefficients: int = 0
    mixes_with_itself: bool = False
    same_partners: bool = False
    first_public_only: int | None = None
    double_precision: bool = False
    pixel_values: NDArray[np.float64] | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Planted:
    """A release and what went into it.

    Args:
        release: what the audit sees.
        truth: sources and coefficients.
        mask_bits: (N, d) 1 where the sign was flipped.
    """

    release: Release
    truth: Truth
    mask_bits: NDArray[np.uint8]


def plant(
    private: ImageSet,
    config: EncoderConfig,
    faults: Faults,
    *,
    public: ImageSet | None = None,
    epochs: int = 1,
) -> Planted:
    """Encode ``private`` ``epochs`` times, in the data's order, by the published law with ``faults``."""
    n = len(private)
    num_private = config.num_mixed if public is None else config.num_private
    rows = _partners(n, num_private, epochs, faults)
    public_rows = _public_rows(public, config.num_mixed - num_private, n * epochs, faults)
    coefficients = _coefficients(config, n * epochs, None if public is None else num_private, faults)
    kind = np.float64 if faults.double_precision else np.float32
    C, H, W = private.image_shape
    levels = faults.pixel_values if faults.pixel_values is not None else np.broadcast_to(
        (2.0 * np.arange(256) - 255.0) / 255.0, (C, 256)
    )  # fmt: skip
    mixed = np.zeros((n * epochs, C, H, W), dtype=kind)
    for j in range(config.num_mixed):
        source = (
            private.images[rows[:, j]]
            if j < num_private
            else _of_pool(public, public_rows[:, j - num_private])
        )
        values = np.stack([levels[c].astype(kind)[source[:, c]] for c in range(C)], axis=1)
        mixed += coefficients[:, j].astype(kind)[:, None, None, None] * values
    bits = _mask_bits(n * epochs, (C, H, W), faults)
    encodings = np.where(bits.reshape(mixed.shape) == 1, -mixed, mixed)
    release = Release(
        encodings,
        _labels(private, rows, coefficients[:, :num_private], config, kind),
        config,
        "inside" if public is None else "cross",
        epochs,
        public_pool=None if public is None else public.images,
        pixel_values=faults.pixel_values,
    )
    return Planted(release, Truth(private, rows, coefficients, public_rows), bits)


def smooth_pictures(
    count: int, *, seed: int, side: int = 16, channels: int = 1, classes: int = 10, border: int = 0
) -> ImageSet:
    """Random smooth pictures with a black border of ``border`` pixels: neighbours agree as in photographs."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, channels, side + 4, side + 4))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(2, 3)).mean(axis=(4, 5))
    images = (128 + 260 * smooth).clip(0, 255).astype(np.uint8)
    if border:
        inner = np.zeros((side, side), dtype=np.uint8)
        inner[border:-border, border:-border] = 1
        images = images * inner
    return ImageSet(images, rng.integers(0, classes, count), tuple(str(c) for c in range(classes)))


def _partners(n: int, num_private: int, epochs: int, faults: Faults) -> NDArray[np.int64]:
    own = np.arange(n)[:, None]
    rng = np.random.default_rng()
    drawn: list[NDArray[np.int64]] = []
    for epoch in range(epochs):
        if epoch and faults.same_partners:
            drawn.append(drawn[0])
        elif faults.mixes_with_itself:
            columns = [own] + [rng.permutation(n)[:, None] for _ in range(num_private - 1)]
            drawn.append(np.concatenate(columns, axis=1))
        else:
            others = draw_private_partners(Randomness().stream("partners"), n, num_private - 1)
            drawn.append(np.concatenate([own, others], axis=1))
    return np.concatenate(drawn)


def _public_rows(public: ImageSet | None, slots: int, count: int, faults: Faults) -> NDArray[np.int64]:
    if public is None:
        return np.empty((count, 0), dtype=np.int64)
    pool = faults.first_public_only or len(public)
    return draw_public_sources(Randomness().stream("partners"), pool, count, slots)


def _of_pool(public: ImageSet | None, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    assert public is not None
    return public.images[rows]


def _coefficients(
    config: EncoderConfig, count: int, num_bounded: int | None, faults: Faults
) -> NDArray[np.float64]:
    rows = draw_coefficients(Randomness().stream("coefficients"), count, config, num_private=num_bounded)
    if faults.coefficients_from is not None:
        law, seed = faults.coefficients_from
        drawn = law.replay(seed, count, config.num_mixed)
        drawn /= drawn.sum(axis=1, keepdims=True)
        accepted = drawn.max(axis=1) <= config.max_coefficient
        if num_bounded is not None:
            accepted &= drawn[:, :num_bounded].sum(axis=1) >= config.min_private_sum
        rows[accepted] = drawn[accepted]  # rows the law refuses are drawn again, later in the stream
    if faults.repeated_coefficients:
        rows[-faults.repeated_coefficients :] = rows[: faults.repeated_coefficients]
    return rows


def _mask_bits(count: int, shape: tuple[int, int, int], faults: Faults) -> NDArray[np.uint8]:
    C, H, W = shape
    values = H * W if faults.one_mask_for_channels else C * H * W
    if faults.mask_seed is not None:
        generator = torch.Generator().manual_seed(faults.mask_seed)
        bits = torch.randint(2, (count, values), generator=generator).numpy().astype(np.uint8)
    else:
        masks = faults.mask_pool or count
        raw = Randomness().stream("signs").read_records(masks, -(-values // 8))
        bits = np.unpackbits(raw, axis=1, count=values, bitorder="little")
        if faults.mask_pool:
            bits = bits[np.random.default_rng().integers(0, faults.mask_pool, count)]
    return np.tile(bits, (1, C)) if faults.one_mask_for_channels else bits


def _labels(
    private: ImageSet,
    rows: NDArray[np.int64],
    coefficients: NDArray[np.float64],
    config: EncoderConfig,
    kind: type[np.floating],
) -> NDArray[np.floating]:
    assert private.labels is not None
    if config.renormalizes_labels:
        coefficients = coefficients / coefficients.sum(axis=1, keepdims=True)
    labels = np.zeros((len(rows), private.num_classes))
    np.add.at(labels, (np.arange(len(rows))[:, None], private.labels[rows]), coefficients)
    return labels.astype(kind)
