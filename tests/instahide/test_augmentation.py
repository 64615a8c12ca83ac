from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instahide.augmentation import augment_batch, random_crop, random_flip


def numbered(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Images whose values are all different and none of them 0."""
    return torch.arange(1.0, count * channels * height * width + 1).view(count, channels, height, width)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.integers(4, 9), st.integers(4, 9), st.integers(0, 2**31))
def test_a_crop_is_the_image_moved_by_one_offset(padding: int, height: int, width: int, seed: int) -> None:
    images = numbered(3, 2, height, width)
    crops = random_crop(images, padding=padding, generator=torch.Generator().manual_seed(seed))
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    for image, crop in zip(padded, crops, strict=True):
        windows = [
            image[:, row : row + height, column : column + width]
            for row in range(2 * padding + 1)
            for column in range(2 * padding + 1)
        ]
        assert any(torch.equal(crop, window) for window in windows)


@pytest.mark.statistical
def test_about_half_of_the_images_are_mirrored() -> None:
    images = numbered(2000, 1, 2, 2)
    flipped = random_flip(images, generator=torch.Generator().manual_seed(0))
    mirrored = (flipped != images).flatten(1).any(dim=1)
    assert torch.equal(flipped[mirrored], images[mirrored].flip(3))
    # Binomial(2000, 1/2): standard deviation 22.4; five of them are passed with chance 6e-7.
    assert abs(int(mirrored.sum()) - 1000) <= 112


def test_the_same_generator_state_gives_the_same_batch() -> None:
    images = numbered(5, 3, 16, 16)
    twice = [augment_batch(images, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*twice)
    assert twice[0].shape == images.shape


def test_augmenting_commutes_with_a_sign_mask() -> None:
    """So encodings may be augmented like images: nothing but position changes."""
    images = numbered(4, 1, 8, 8)
    sign_mask = torch.where(torch.rand(images.shape) < 0.5, -1.0, 1.0)
    together = augment_batch(images * sign_mask, generator=torch.Generator().manual_seed(1))
    apart = augment_batch(images, generator=torch.Generator().manual_seed(1))
    assert torch.equal(together.abs(), apart)
