from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from instahide.attacks.implementation_audits.mask_recovery import (
    KnownBits,
    audit_mask_generator,
    background_bits,
    bits_from_sure_signs,
    recover_mask_stream,
)
from instahide.attacks.implementation_audits.planted import Faults, plant, smooth_pictures
from instahide.attacks.implementation_audits.planted_checks import sound_release
from instahide.attacks.implementation_audits.release import Release
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

LAW = EncoderConfig(num_mixed=4, mode="compat")
DATA = Path(os.environ.get("INSTAHIDE_DATA", Path(__file__).resolve().parents[4] / "../shared/data"))


def torch_bits(count: int, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (count,), generator=generator).numpy().astype(np.uint8)


def known_share(bits: np.ndarray, share: float, groups: int = 0) -> KnownBits:
    """Some of the bits, those of group g all flipped or not."""
    rng = np.random.default_rng(0)
    places = np.flatnonzero(rng.random(len(bits)) < share)
    group = rng.integers(0, groups, len(places)) if groups else np.full(len(places), -1)
    flips = rng.integers(0, 2, groups + 1, dtype=np.uint8)
    flips[-1] = 0
    return KnownBits(places, bits[places] ^ flips[group], group)


@pytest.mark.parametrize("groups", [0, 3])
def test_known_mask_bits_give_all_others_past_and_future_and_the_generator(groups: int) -> None:
    bits = torch_bits(28_000, seed=8)
    stream, solution, equations = recover_mask_stream(known_share(bits[3000:], 0.95, groups))
    assert stream is not None
    assert equations - solution.rank >= 32
    np.testing.assert_array_equal(stream.bits(0, 25_000), bits[3000:])
    np.testing.assert_array_equal(stream.bits(-3000, 3000), bits[:3000])
    generator = stream.generator()
    again = generator.randint(0, 2, 25_000 - stream.start)
    np.testing.assert_array_equal(again, bits[3000 + stream.start :])


def test_fair_bits_contradict_the_recurrence() -> None:
    bits = np.random.default_rng(3).integers(0, 2, 25_000, dtype=np.uint8)  # PCG64
    stream, solution, _ = recover_mask_stream(known_share(bits, 0.95))
    assert stream is None
    assert solution.contradictions > 0


def test_too_few_bits_are_said_to_be_too_few() -> None:
    stream, solution, _ = recover_mask_stream(known_share(torch_bits(20_500, seed=1), 0.9))
    assert stream is None
    assert solution.rank == 0


def test_a_black_border_gives_the_generator_of_a_release_away() -> None:
    planted = plant(smooth_pictures(110, seed=1, border=5), LAW, Faults(mask_seed=77))
    result = audit_mask_generator(planted.release)
    assert result.leaked
    assert result.metrics["held_out_bits_predicted"] == 1.0
    stream, _, _ = recover_mask_stream(background_bits(planted.release))
    assert stream is not None
    predicted = stream.bits(0, planted.mask_bits.size) != planted.mask_bits.ravel()
    assert not predicted.any()


def test_public_images_with_the_same_border_say_which_signs_are_sure() -> None:
    planted = plant(smooth_pictures(20, seed=1, border=5), LAW, Faults(mask_seed=5))
    known = bits_from_sure_signs(planted.release, smooth_pictures(300, seed=2, border=5).images)
    assert len(known.places) >= 20 * (16 * 16 - 6 * 6)
    np.testing.assert_array_equal(known.bits, planted.mask_bits.ravel()[known.places])


def test_the_default_mode_has_no_recoverable_generator() -> None:
    result = audit_mask_generator(sound_release(border=5))
    assert result.leaked is False
    assert result.metrics["contradictions"] > 0


def test_too_few_certain_pixels_are_not_decided() -> None:
    known = known_share(torch_bits(300 * 784, seed=2), 20 / 784)
    assert audit_mask_generator(sound_release(images=60), known=known).leaked is None


def test_noise_is_not_decided() -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (50, 1, 16, 16)).astype(np.float32)
    result = audit_mask_generator(Release(noise, None, LAW, "inside"))
    assert result.leaked is None
    assert "too few" in result.verdict


def test_places_must_increase() -> None:
    with pytest.raises(InvalidInputError, match="increase"):
        KnownBits(np.array([3, 3]), np.zeros(2, np.uint8), np.zeros(2, np.int64))


@pytest.mark.slow
def test_a_third_of_the_mask_bits_of_75_images_gives_the_whole_generator() -> None:
    """The published setting of 75 images of 784 pixels: 13,000 unknowns."""
    bits = torch_bits(75 * 784 + 10_000, seed=123)
    stream, _, _ = recover_mask_stream(known_share(bits[: 75 * 784], 0.35))
    assert stream is not None
    np.testing.assert_array_equal(stream.bits(0, len(bits)), bits)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "images/mnist_5k.npz").is_file(), reason="the MNIST file is not there")
def test_a_hundred_encoded_digits_give_the_generator_and_nothing_else_is_needed() -> None:
    with np.load(DATA / "images/mnist_5k.npz") as file:
        digits = ImageSet(file["x_train"][:100], file["y_train"][:100])
    planted = plant(digits, LAW, Faults(mask_seed=991))
    result = audit_mask_generator(planted.release)
    assert result.leaked
    assert result.metrics["held_out_bits_predicted"] == 1.0
    fresh = plant(digits, LAW, Faults())
    assert audit_mask_generator(fresh.release).leaked is False
