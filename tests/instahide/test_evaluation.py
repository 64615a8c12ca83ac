from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.evaluation import evaluate, wilson_interval
from instahide.images import ImageSet


class ByBrightness(nn.Module):
    """Class 1 when the mean pixel is positive; its score is the mean."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = 4 * images.flatten(1).mean(1)
        return torch.stack([-mean, mean], dim=1)


def grey_images(levels: list[int], labels: list[int]) -> ImageSet:
    pixels = np.repeat(np.array(levels, dtype=np.uint8), 16 * 16).reshape(-1, 16, 16)
    pixels[:, 0, 0] = 128  # the encoder refuses blank images
    return ImageSet(pixels, np.array(labels))


def test_plain_figures_are_those_counted_by_hand() -> None:
    images = grey_images([10, 20, 200, 30, 220, 230], [0, 0, 0, 1, 1, 1])
    report = evaluate(ByBrightness(), images, batch_size=4)
    plain = report.plain
    assert plain.accuracy == pytest.approx(4 / 6)
    assert plain.per_class_recall == pytest.approx((2 / 3, 2 / 3))
    # Pairs (class 1, class 0) in the right order: 30 beats 10 and 20, 220 and 230 beat all: 8 of 9.
    assert plain.auc == pytest.approx(8 / 9)
    mean = torch.from_numpy(images.images).float().div(127.5).sub(1).flatten(1).mean(1).double()
    right = torch.where(torch.tensor([0, 0, 0, 1, 1, 1]) == 1, 8 * mean, -8 * mean)
    assert plain.loss == pytest.approx(float(nn.functional.softplus(-right).mean()), rel=1e-4)


def test_without_an_encoder_encoded_modes_are_not_measured() -> None:
    report = evaluate(ByBrightness(), grey_images([10, 250], [0, 1]))
    assert report.encoded_once is None
    assert report.encoded_average is None
    assert report.to_dict()["encoded_once"] is None


def test_encoded_modes_ask_with_encodings_and_not_with_the_image() -> None:
    """Brightness survives mixing up but not a sign mask."""
    images = grey_images([10] * 40 + [245] * 40, [0] * 40 + [1] * 40)
    accuracies = {}
    for mode in ("mixup", "hardened"):
        config = EncoderConfig(num_mixed=2, num_private=2, mode=mode, max_coefficient=0.9)
        report = evaluate(ByBrightness(), images, encoder=Encoder(config, private=images), num_views=10)
        assert report.plain.accuracy == 1.0
        assert report.encoded_once is not None
        assert report.encoded_average is not None
        assert (report.encoded_once.num_views, report.encoded_average.num_views) == (1, 10)
        accuracies[mode] = report.encoded_once.accuracy
    # The query has the larger coefficient, so its side of grey wins without a sign mask. With it the
    # answer is a fair coin: 80 tosses reach 0.85 (68 right) with chance 8e-11.
    assert accuracies["mixup"] >= 0.95
    assert accuracies["hardened"] < 0.85


def test_a_class_without_test_images_is_left_out_and_named() -> None:
    plain = evaluate(ByBrightness(), grey_images([10, 20, 250], [0, 0, 0])).plain
    assert plain.per_class_recall == (pytest.approx(2 / 3), None)
    assert plain.balanced_accuracy == pytest.approx(2 / 3)
    assert plain.auc is None


def test_evaluation_leaves_the_model_in_its_mode() -> None:
    model = ByBrightness().train()
    evaluate(model, grey_images([10, 250], [0, 1]))
    assert model.training


def test_wilson_interval_against_published_values() -> None:
    """Newcombe 1998, table I: 81 of 263 and 15 of 148."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_wilson_interval_stays_inside_zero_and_one() -> None:
    assert wilson_interval(0, 20)[0] == 0.0
    assert wilson_interval(20, 20)[1] == 1.0


def test_what_cannot_be_evaluated_is_refused() -> None:
    labelled = grey_images([10, 250], [0, 1])
    with pytest.raises(InvalidInputError, match="labelled"):
        evaluate(ByBrightness(), ImageSet(labelled.images))
    with pytest.raises(InvalidInputError, match="num_views"):
        evaluate(ByBrightness(), labelled, num_views=0)
    with pytest.raises(InvalidInputError, match="knows 2 classes"):
        evaluate(ByBrightness(), grey_images([10, 250], [0, 5]))
