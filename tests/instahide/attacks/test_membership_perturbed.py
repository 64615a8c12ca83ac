"""Membership when only a changed copy is held."""

from __future__ import annotations

import numpy as np
import pytest

from instahide.attacks.membership_perturbed import STRENGTHS, membership_by_copy, perturbed, shifted
from instahide.attacks.view import AttackerView
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical


def blotches(count: int, *, seed: int) -> ImageSet:
    noise = np.random.default_rng(seed).normal(size=(count, 20, 20))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(1, 2)).mean(axis=(3, 4))
    return ImageSet((128 + 260 * smooth).clip(0, 255).astype(np.uint8), np.arange(count) % 3)


def test_a_shift_repeats_the_edge() -> None:
    image = np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3)
    assert shifted(image, 1, -1)[0, 0].tolist() == [[1, 2, 2], [1, 2, 2], [4, 5, 5]]


def test_changes_do_what_they_say() -> None:
    images = blotches(20, seed=0)
    assert np.array_equal(
        perturbed(images, "brightness", 0.5).images, np.rint(images.images * 1.5).clip(0, 255)
    )
    noisy = perturbed(images, "noise", 10).images.astype(float) - images.images
    inside = (images.images > 40) & (images.images < 215)
    # About 5,000 values of standard deviation 10: its standard error is 0.1; five of them.
    assert noisy[inside].std() == pytest.approx(10, abs=0.5)
    rough, fine = (perturbed(images, "jpeg", strength).images.astype(float) for strength in (90, 5))
    assert np.abs(fine - images.images).mean() < np.abs(rough - images.images).mean() < 30
    colour = ImageSet(np.repeat(images.images, 3, axis=1))
    assert perturbed(colour, "jpeg", 20).images.shape == colour.images.shape
    flat = ImageSet(np.full((2, 16, 16), 77, dtype=np.uint8))
    assert np.array_equal(perturbed(flat, "crop", 0.1).images, flat.images)


@pytest.mark.parametrize("change", STRENGTHS)
def test_strength_zero_is_the_image_itself(change: str) -> None:
    images = blotches(5, seed=1)
    assert np.array_equal(perturbed(images, change, 0).images, images.images)


@pytest.mark.parametrize(("change", "strength"), [("mirror", 1), ("noise", -1), ("crop", 0.5), ("jpeg", 100)])
def test_changes_without_meaning_are_refused(change: str, strength: float) -> None:
    with pytest.raises(InvalidInputError):
        perturbed(blotches(2, seed=1), change, strength)


def test_a_shift_hides_a_member_and_registering_finds_it_again() -> None:
    inside = blotches(40, seed=2)
    encoded = Encoder(EncoderConfig(num_mixed=2, mode="compat"), private=inside).encode_epoch()
    view = AttackerView.of(encoded, blotches(800, seed=3), show_labels=False)
    candidates = ImageSet(np.concatenate([inside.images, blotches(200, seed=4).images]))
    result = membership_by_copy(
        view, candidates, np.arange(240) < 40, changes={"shift": (0, 2)}, register=2, uses=2
    )
    # A copy two pixels off: smooth blotches five pixels wide keep some likeness. The AUC of 40 against
    # 200 has standard deviation 0.05 without a signal.
    assert result.metrics["auc"] > 0.9
    assert result.metrics["auc_shift_2"] < result.metrics["auc"] - 0.05
    assert result.metrics["auc_shift_registering_2"] > result.metrics["auc_shift_2"] + 0.02
    assert [strength for strength, _ in result.curves["shift"]] == [0, 2]
