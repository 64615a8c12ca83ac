from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from instahide.attacks.implementation_audits.label_leakage import coefficients_from_labels
from instahide.attacks.implementation_audits.lattice import (
    audit_lattice,
    decode_values,
    tolerance_of,
)
from instahide.attacks.implementation_audits.planted import Faults, Planted, plant, smooth_pictures
from instahide.attacks.implementation_audits.planted_checks import sound_release
from instahide.attacks.implementation_audits.release import Release
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

# The published normalisation of CIFAR-10.
MEAN, STD = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
PUBLISHED = (np.arange(256)[None, :] / 255 - MEAN[:, None]) / STD[:, None]


def planted(k: int, *, double: bool, published: bool, images: int = 60) -> Planted:
    faults = Faults(double_precision=double, pixel_values=PUBLISHED if published else None)
    private = smooth_pictures(images, seed=1, channels=3)
    return plant(private, EncoderConfig(num_mixed=k, mode="compat"), faults)


def true_pixels(weak: Planted, row: int, count: int) -> np.ndarray:
    """(count, k) pixels of channel 0, sources in the order of their classes, as labels show them."""
    sources = weak.truth.private_rows[row]
    assert weak.truth.images.labels is not None
    order = np.argsort(weak.truth.images.labels[sources])
    images: np.ndarray = weak.truth.images.images[sources[order], 0]
    return images.reshape(len(sources), -1).T[:count]


@pytest.mark.parametrize(
    ("k", "double", "count"), [(2, False, 256), (2, True, 256), (3, True, 40), (4, True, 12)]
)
def test_the_only_answer_is_the_true_one_sign_included(k: int, double: bool, count: int) -> None:
    weak = planted(k, double=double, published=True)
    known = coefficients_from_labels(weak.release)
    row = int(np.flatnonzero(~np.isnan(known).any(axis=1))[0])
    values = weak.release.encodings[row, 0].ravel()[:count].astype(np.float64)
    levels = np.broadcast_to(weak.release.levels[0], (k, 256))
    decoding = decode_values(values, known[row], levels, tolerance_of(weak.release, k))
    assert (decoding.candidates >= 1).all()  # the truth always fits
    unique = decoding.unique
    # In float32 rows with nearly commensurable coefficients are ambiguous throughout; in float64 none is.
    assert unique.mean() > (0.99 if double else 0.4)
    sign = decoding.counts.argmax(axis=1)
    pixels = decoding.pixels[np.arange(count), sign]
    np.testing.assert_array_equal(pixels[unique], true_pixels(weak, row, count)[unique])
    np.testing.assert_array_equal(sign[unique], weak.mask_bits[row, :count][unique])


def test_answers_are_those_of_trying_all_pixels() -> None:
    rng = np.random.default_rng(0)
    levels = np.sort(rng.normal(size=(2, 256)), axis=1)
    coefficients = np.array([0.45, 0.55])
    values = rng.uniform(-1, 1, 5)
    decoding = decode_values(values, coefficients, levels, 1e-3)
    sums = np.array([coefficients[0] * levels[0, p] + coefficients[1] * levels[1, q]
                     for p, q in product(range(256), repeat=2)])  # fmt: skip
    for value, counts in zip(values, decoding.counts, strict=True):
        expected = [(np.abs(sign * value - sums) <= 1e-3).sum() for sign in (1, -1)]
        assert counts.tolist() == expected


def test_a_symmetric_range_leaves_exactly_two_mirrored_answers() -> None:
    result = audit_lattice(planted(2, double=True, published=False).release, max_pixels=200)
    assert result.leaked
    assert result.metrics["pixels_decoded"] == 0.0
    assert result.metrics["candidates_per_pixel_median"] == 2.0
    assert result.metrics["pixels_decoded_up_to_sign"] > 0.98
    assert "sign" in result.verdict


@pytest.mark.parametrize(("k", "leaks"), [(2, True), (3, False)])
def test_float32_keeps_two_sources_apart_but_not_three(k: int, leaks: bool) -> None:
    result = audit_lattice(planted(k, double=False, published=True).release, max_pixels=60)
    assert result.leaked is leaks


def test_the_compat_mode_falls_at_two_private_images_and_the_default_does_not() -> None:
    compat = planted(2, double=False, published=False)
    assert audit_lattice(compat.release, max_pixels=200).leaked
    result = audit_lattice(sound_release(num_mixed=2, public=False), max_pixels=100)
    assert result.leaked is False
    assert result.metrics["candidates_per_pixel_median"] > 300


def test_noise_has_no_answers() -> None:
    weak = planted(2, double=False, published=True)
    noise = np.random.default_rng(0).uniform(-1, 1, weak.release.encodings.shape).astype(np.float32)
    release = Release(noise, weak.release.labels, weak.release.config, "inside", pixel_values=PUBLISHED)
    result = audit_lattice(release, max_pixels=200)
    assert result.leaked is False
    assert result.metrics["candidates_per_pixel_median"] == 0.0


def test_without_labels_there_is_nothing_to_solve() -> None:
    weak = planted(2, double=True, published=True).release
    release = Release(weak.encodings, None, weak.config, "inside")
    assert audit_lattice(release).leaked is False


def test_five_sources_are_too_many() -> None:
    with pytest.raises(InvalidInputError, match="5 sources"):
        decode_values(np.zeros(1), np.full(5, 0.2), np.zeros((5, 256)), 0.1)
