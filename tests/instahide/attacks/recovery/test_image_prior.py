from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from instahide.attacks.recovery.image_prior import ImagePrior, cosines, sign_odds
from instahide.errors import InvalidInputError


def pictures(count: int, *, seed: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn((count, channels, 10, 12), generator=generator)
    return torch.nn.functional.avg_pool2d(rough, 3, 1) + 0.2


@pytest.mark.parametrize("size", [1, 5, 8, 32])
def test_cosines_are_scipys_orthonormal_dct(size: int) -> None:
    image = np.random.default_rng(0).normal(size=(size, size))
    ours = cosines(size).double().numpy()
    np.testing.assert_allclose(ours @ image @ ours.T, dctn(image, norm="ortho"), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_coefficients_are_a_rotation_and_can_be_taken_back(channels: int) -> None:
    images = pictures(50, seed=1, channels=channels)
    prior = ImagePrior.of(images)
    coefficients = prior.coefficients(images)
    torch.testing.assert_close(prior.images(coefficients), images, atol=1e-5, rtol=0)
    energy = (images - prior.mean).square().sum()
    torch.testing.assert_close(coefficients.square().sum(), energy, rtol=1e-4, atol=0)


def test_variances_are_those_of_the_coefficients_and_add_up_to_the_pixels() -> None:
    images = pictures(400, seed=2)
    prior = ImagePrior.of(images)
    expected = prior.coefficients(images).var(0, correction=0)
    torch.testing.assert_close(prior.variances, expected, atol=1e-5, rtol=1e-3)
    assert prior.pixel_variance == pytest.approx(float(images.var(0, correction=0).mean()), rel=1e-3)


def test_one_image_has_no_statistics() -> None:
    with pytest.raises(InvalidInputError, match="no statistics"):
        ImagePrior.of(pictures(1, seed=0))


def test_a_negative_has_the_opposite_odds() -> None:
    upright, asked = pictures(300, seed=3), pictures(20, seed=4)
    torch.testing.assert_close(sign_odds(upright, -asked), -sign_odds(upright, asked))


@pytest.mark.statistical
def test_odds_tell_bright_from_dark() -> None:
    # The mean of a picture is 0.2 ± 1/(3·√80)·3 < 0.2 ± 0.12 (neighbours agree): its sign alone is right
    # with probability 0.95 in one channel, > 0.99 in three; 90 of 100 fail with chance < 1e-6.
    odds = sign_odds(pictures(400, seed=5), pictures(100, seed=6))
    assert int((odds > 0).sum()) >= 90
