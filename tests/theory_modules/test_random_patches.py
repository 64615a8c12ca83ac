"""The patch front end, against the formula written out patch by patch."""

from __future__ import annotations

import numpy as np
import pytest

from theory_modules.convolutional_ntk import convolutional_ntk
from theory_modules.kernel_input import KernelInputError
from theory_modules.random_patches import RandomPatchFeatures


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 2, 7, 6))


def fitted(**options: object) -> RandomPatchFeatures:
    return RandomPatchFeatures(5, 3, num_samples=3000, **options).fit(pictures(20))  # type: ignore[arg-type]


def test_a_feature_is_the_rectified_product_of_two_whitened_patches() -> None:
    features, image = fitted(bias=0.2), pictures(1, seed=3)
    out = features.transform(image)
    assert out.shape == (1, 10, 5, 4)
    for y, x in ((0, 0), (4, 3), (2, 1)):
        patch = image[0, :, y : y + 3, x : x + 3].ravel()
        patch = (patch - patch.mean()) / np.sqrt(patch.var() + features.normalization_eps)
        response = features.filters_.numpy() @ (
            features._whitening.numpy() @ (patch - features._mean.numpy())
        )
        expected = np.maximum(np.concatenate([response, -response]) - 0.2, 0)
        np.testing.assert_allclose(out[0, :, y, x], expected, rtol=1e-5, atol=1e-6)


def test_filters_are_of_unit_length_and_the_whitened_patches_uncorrelated() -> None:
    features = fitted(zca_eps=1e-12)
    np.testing.assert_allclose(features.filters_.norm(dim=1).numpy(), 1, rtol=1e-12)
    sample = features._normalised(features._random_patches(_tensor(pictures(20)), np.random.default_rng(0)))
    whitened = ((sample - features._mean) @ features._whitening).numpy()
    covariance = whitened.T @ whitened / len(whitened)
    values = np.linalg.eigvalsh(covariance)
    assert values[0] < 1e-6  # the mean of each patch is gone
    np.testing.assert_allclose(values[1:], 1, rtol=1e-9)


def _tensor(images: np.ndarray) -> object:
    import torch

    return torch.from_numpy(images)


def test_brightness_and_contrast_hardly_matter() -> None:
    features = RandomPatchFeatures(5, 3, normalization_eps=1e-9).fit(pictures(20))
    image = pictures(1, seed=3)
    np.testing.assert_allclose(features.transform(3 * image + 7), features.transform(image), atol=1e-5)


def test_the_same_random_state_gives_the_same_filters_and_another_one_others() -> None:
    np.testing.assert_array_equal(fitted(random_state=1).filters_, fitted(random_state=1).filters_)
    assert not np.array_equal(fitted(random_state=1).filters_, fitted(random_state=2).filters_)


def test_the_kernel_takes_the_features_like_images() -> None:
    features = fitted().transform(pictures(9, seed=4))
    kernel = convolutional_ntk(features, depth=3, pooling="local", pooling_radius=1)
    assert kernel.shape == (9, 9)
    assert np.linalg.eigvalsh(kernel.astype(float)).min() > 0


def test_bad_input_is_refused() -> None:
    with pytest.raises(KernelInputError, match="patch_size is 9 and images are 7 x 6"):
        RandomPatchFeatures(5, 9).fit(pictures(3))
    with pytest.raises(KernelInputError, match="every patch is of one colour"):
        RandomPatchFeatures(5, 3).fit(np.ones((4, 1, 5, 5)))
    with pytest.raises(KernelInputError, match="images have 1 channels; fitted on 2"):
        fitted().transform(pictures(2)[:, :1])
    with pytest.raises(KernelInputError, match="num_patches is 0"):
        RandomPatchFeatures(0)
