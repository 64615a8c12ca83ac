"""The Gram attack on photographs, and on noise."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from instahide.attacks.gram.image_attack import gram_image_attack, null_check
from instahide.attacks.gram.whitened_images import _with_scale, recover_by_gram
from instahide.attacks.replica import make_replica
from instahide.attacks.view import AttackerView
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

DATA = Path(os.environ.get("INSTAHIDE_DATA", Path(__file__).resolve().parents[4] / "../shared/data"))
CIFAR = DATA / "images/cifar10_5k.npz"
needs_cifar = pytest.mark.skipif(not CIFAR.is_file(), reason="the CIFAR-10 file is not here")


def photographs() -> ImageSet:
    with np.load(CIFAR) as file:
        images = ImageSet(file["x_train"], file["y_train"])
    return images.subset(np.random.default_rng(1).permutation(len(images)))


@needs_cifar
def test_eight_releases_of_photographs_without_labels_give_most_of_them_away() -> None:
    images = photographs()
    public = ImageSet(images.images[12:412])
    config = EncoderConfig(num_mixed=4, num_private=2, mode="hardened")
    made = make_replica(images.subset(np.arange(12)), public=public, config=config, releases=8)
    result, recovery = gram_image_attack(
        made.view(show_labels=False), 12, truth=made.truth, with_checks=False
    )
    assert result.leaked
    # Measured 0.7 to 0.9; the mean image has about 0.15.
    assert result.metrics["mean_ssim"] > 0.45
    assert result.metrics["pairs_right"] > 0.4
    assert recovery.images.shape == (12, 3, 32, 32)


@needs_cifar
def test_noise_gives_no_image() -> None:
    public = ImageSet(photographs().images[:200])
    config = EncoderConfig(num_mixed=4, num_private=2)
    view = AttackerView(torch.randn(24, 3, 32, 32) * 0.2, None, config, "cross", public, public)
    assert len(recover_by_gram(view, 10).images) == 0
    assert "0 images came out" in null_check(view, 10)


def test_scales_are_those_in_which_coefficients_sum_to_the_rest() -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(np.array([rng.choice(6, 2, replace=False) for _ in range(60)]))
    true = torch.from_numpy(rng.uniform(0.05, 0.6, (60, 2))).float()
    scale = torch.from_numpy(rng.uniform(0.5, 2, 6)).float()
    left = true.sum(1)
    left[:9] += 0.3  # encodings with an unnoticed public image
    # Least squares would be off by about 9/60·0.3 = 0.045.
    assert (_with_scale(rows, true / scale[rows], left, 6) - true).abs().max() < 0.015


def test_what_the_attack_is_not_for_is_refused() -> None:
    config = EncoderConfig(num_mixed=4, num_private=1)
    images = ImageSet(np.random.default_rng(0).integers(0, 256, (20, 1, 16, 16), dtype=np.uint8))
    view = AttackerView(torch.zeros(4, 1, 16, 16), None, config, "cross", images, images)
    with pytest.raises(InvalidInputError, match="the attack is for 2"):
        recover_by_gram(view, 10)
    inside = AttackerView(torch.zeros(4, 1, 16, 16), None, EncoderConfig(num_mixed=2), "inside", images)
    with pytest.raises(InvalidInputError, match="all sources are private"):
        recover_by_gram(inside, 10)
