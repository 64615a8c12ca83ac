"""The parts of the search for public sources against dense algebra, enumeration, scipy and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from instahide.attacks.public_sources_prior import ImagePrior, cosines
from instahide.attacks.public_sources_regression import (
    frequency_bands,
    nonnegative_least_squares,
    remaining_spread,
    standard_errors,
)
from instahide.attacks.public_sources_search import SourceSearch
from instahide.attacks.public_sources_signs import expected_mixtures
from instahide.attacks.public_sources_squares import SquareFilter
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet


def smooth_images(count: int, *, side: int = 8, channels: int = 1, seed: int = 0) -> ImageSet:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, channels, side + 4, side + 4))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(2, 3)).mean(axis=(4, 5))
    return ImageSet((128 + 200 * smooth).clip(0, 255).astype(np.uint8))


def dense(prior: ImagePrior) -> torch.Tensor:
    """(d, d) S of the prior's transform, column by column."""
    shape = prior.mean.shape
    d = prior.mean.numel()
    return prior.transform(torch.eye(d).view(d, *shape)).reshape(d, d).T


def test_cosines_are_orthonormal() -> None:
    assert torch.allclose(cosines(12) @ cosines(12).T, torch.eye(12), atol=1e-6)


def test_the_transform_is_orthogonal_and_its_diagonal_is_that_of_the_dense_matrix() -> None:
    prior = ImagePrior.of(smooth_images(50, side=5, channels=3))
    S = dense(prior)
    assert torch.allclose(S @ S.T, torch.eye(len(S)), atol=1e-5)
    pixels = torch.randn(4, 3, 5, 5)
    assert torch.allclose(prior.inverse(prior.transform(pixels)), pixels, atol=1e-5)
    eigenvalues = torch.rand(2, 3, 5, 5)
    expected = torch.stack([(S.T @ torch.diag(row) @ S).diagonal() for row in eigenvalues.flatten(1)])
    assert torch.allclose(prior.pixel_diagonal(eigenvalues).flatten(1), expected, atol=1e-5)


def test_variances_are_those_of_the_transformed_images() -> None:
    images = smooth_images(300, channels=3)
    prior = ImagePrior.of(images)
    x = torch.from_numpy(images.images).double() / 127.5 - 1
    components = (x - x.mean(0)).flatten(1) @ dense(prior).double().T
    assert torch.allclose(components.square().mean(0).float(), prior.variance.flatten(), rtol=1e-3, atol=1e-5)
    with pytest.raises(InvalidInputError, match="statistics"):
        ImagePrior.of(images.subset([0]))


def test_signs_come_out_as_the_most_likely_of_all_two_to_the_nine() -> None:
    prior = ImagePrior.of(smooth_images(400, side=3))
    rng = np.random.default_rng(1)
    variance = prior.variance + 0.01**2
    covariance = dense(prior).T @ torch.diag(variance.flatten()) @ dense(prior)
    factor = torch.linalg.cholesky(covariance)
    mean = 0.3 * factor @ torch.from_numpy(rng.normal(size=9)).float()
    z = (mean[:, None] + factor @ torch.from_numpy(rng.normal(size=(9, 20))).float()).T
    signs = torch.tensor(list(product((1.0, -1.0), repeat=9)))
    found = expected_mixtures(
        prior,
        z.abs().view(-1, 1, 3, 3),
        mean.view(1, 1, 3, 3),
        torch.ones(20),
        start=torch.zeros(20, 1, 3, 3),
    ).flatten(1)
    precision = torch.linalg.inv(covariance)

    def energy(values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = ((values - mean) @ precision * (values - mean)).sum(-1) / 2
        return result

    best = torch.stack([energy(signs * row.abs()).min() for row in z])
    # Annealing is a heuristic: 17 of 20 pictures within 1 nat of the best of 512 is far from chance.
    assert (energy(z.abs() * found.sign()) <= best + 1).sum() >= 17


def test_nonnegative_least_squares_is_scipys() -> None:
    from scipy.optimize import nnls

    rng = np.random.default_rng(0)
    system, target = rng.normal(size=(6, 30, 4)), rng.normal(size=(6, 30))
    gram = torch.from_numpy(np.einsum("bij,bik->bjk", system, system)).float()
    moments = torch.from_numpy(np.einsum("bij,bi->bj", system, target)).float()
    expected = np.stack([nnls(a, b)[0] for a, b in zip(system, target, strict=True)])
    assert np.allclose(nonnegative_least_squares(gram, moments).numpy(), expected, atol=1e-4)


def test_standard_errors_are_those_of_the_inverse_and_twins_do_not_fail() -> None:
    system = torch.randn(1, 3, 20, generator=torch.Generator().manual_seed(0))
    gram = system @ system.mT
    expected = torch.linalg.inv(gram).diagonal(dim1=1, dim2=2).sqrt()
    none = torch.zeros(1, 3, dtype=torch.bool)
    assert torch.allclose(standard_errors(gram, absent=none), expected, rtol=1e-3)
    twins = torch.cat([system[:, :2], system[:, :1], torch.zeros(1, 1, 20)], dim=1) * 1e3
    absent = torch.tensor([[False, False, False, True]])
    error = standard_errors(twins @ twins.mT, absent=absent)
    assert torch.isfinite(error).all()
    assert error[0, 0] > 100 * error[0, 1]


@pytest.mark.parametrize("count", [2, 4, 6])
def test_the_remaining_spread_is_that_of_drawn_coefficients(count: int) -> None:
    drawn = np.abs(np.random.default_rng(0).normal(size=(200_000, count)))
    drawn /= drawn.sum(axis=1, keepdims=True)
    expected = 0.25 * np.square(drawn).sum(axis=1).mean()
    assert float(remaining_spread(torch.tensor(0.5), count)) == pytest.approx(expected, rel=0.05)


def test_every_component_is_in_one_band() -> None:
    bands = frequency_bands(3, 16, 16)
    assert bands.shape[0] == 3 * 16 * 16
    assert (bands.sum(1) == 1).all()
    assert (bands.sum(0) > 0).all()


@pytest.mark.statistical
def test_scores_of_images_that_are_not_inside_are_standard_normal() -> None:
    prior = ImagePrior.of(smooth_images(400, side=16))
    generator = torch.Generator().manual_seed(0)
    images = prior.inverse(torch.randn(300, 1, 16, 16, generator=generator) * prior.variance.sqrt())
    search = SourceSearch(EncoderConfig(num_mixed=4), prior, images[:200], wanted=2)
    scores = search.match(search.whiten(images[200:]))
    # Mean of ⟨r_i, x_j⟩ over 100 × 200 pairs: standard deviation 1/√20,000 = 0.007, seven in 0.05. The
    # mean square is that of 100 quadratic forms of variance 2·tr S² = 2·(1/256 + 1/200): 0.013, six in 0.08.
    assert abs(float(scores.mean())) < 0.05
    assert float(scores.var()) == pytest.approx(1.0, abs=0.08)


def test_squares_alone_recognise_a_dominant_source() -> None:
    images = smooth_images(120, side=16, seed=3)
    prior = ImagePrior.of(images)
    pixels = torch.from_numpy(images.images).float() / 127.5 - 1
    mixture = 0.8 * pixels[:20] + 0.2 * pixels[100:]
    squares = SquareFilter(EncoderConfig(num_mixed=2, num_private=1), prior, pixels - prior.mean)
    best = squares.match(mixture.abs()).argmax(1)
    assert (best == torch.arange(20)).sum() >= 18
