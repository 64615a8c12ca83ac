from __future__ import annotations

import numpy as np
import pytest
import torch

from instahide.attacks.update_inversion.inversion import Inversion
from instahide.attacks.update_inversion.scoring import baselines, compare, score_inversion

from .inversion_examples import batch, blotches


def inversion(
    images: torch.Tensor, labels: torch.Tensor | None = None, *, absolute: bool = False
) -> Inversion:
    verified = torch.ones(len(images), dtype=torch.bool)
    return Inversion(images, labels, verified, "first layer, rank one", 4, absolute=absolute)


def test_one_assignment_serves_images_and_labels() -> None:
    images, labels = batch(4)
    order = torch.tensor([2, 0, 3, 1])
    metrics, intervals = score_inversion(inversion(images[order], labels[order]), images, labels)
    assert metrics["exact_share"] == metrics["label_accuracy"] == 1.0
    assert metrics["mse"] == metrics["label_error"] == 0.0
    assert metrics["mean_psnr"] == 200.0
    # All of four: Clopper & Pearson's lower limit is 0.025^(1/4).
    assert intervals["exact_share"] == (pytest.approx(0.025**0.25), 1.0)


def test_labels_of_other_images_are_wrong_even_if_they_are_the_right_set() -> None:
    images, labels = batch(4)
    metrics, _ = score_inversion(inversion(images, labels.roll(1, 0)), images, labels)
    assert metrics["label_accuracy"] == 0.0


def test_an_image_nobody_answered_counts_as_grey_and_never_as_found() -> None:
    images, labels = batch(4)
    metrics, _ = score_inversion(inversion(images[:1], labels[:1]), images, labels)
    grey = float(images[1:].square().mean())
    assert metrics["exact_share"] == metrics["label_accuracy"] == 0.25
    assert metrics["mse"] == pytest.approx(0.75 * grey, rel=1e-5)
    nothing, _, matched = compare(images[:0], images)
    assert nothing["mean_ssim"] == 0.0
    assert matched.tolist() == [-1] * 4


def test_absolute_values_are_compared_with_absolute_values() -> None:
    images, _ = batch(4)
    assert score_inversion(inversion(images.abs(), absolute=True), images)[0]["mse"] == 0.0
    assert score_inversion(inversion(images.abs()), images)[0]["mse"] > 0.1


def test_baselines_are_those_of_noise_and_of_the_mean_image() -> None:
    images, _ = batch(4)
    public = blotches(100, seed=9)
    without = baselines(images, public)
    mean = torch.from_numpy(public.images.astype(np.float32)).mean(0) / 127.5 - 1
    assert without["mse"] == pytest.approx(float((images - mean).square().mean()), rel=1e-4)
    assert without["mse"] < without["mse_of_noise"]
    assert "mse" not in baselines(images, None)
