"""The public pool's texture filter: keeps pictures, drops flat fields, says so when too few remain."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from instahide import Encoder, EncoderConfig, ImageSet
from instahide.errors import InvalidInputError
from instahide.texture_filter import textured_fraction, textured_rows

from ..contracts import image_set

DATA = Path(os.environ.get("INSTAHIDE_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))


def flat_images(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 2, (count, 3, 16, 16))
    return np.clip(np.linspace(20, 230, count)[:, None, None, None] + noise, 0, 255).astype(np.uint8)


def test_sensor_noise_and_smooth_ramps_have_no_texture() -> None:
    ramp = np.broadcast_to(np.arange(0, 128, 4, dtype=np.uint8), (1, 1, 32, 32))
    assert textured_rows(flat_images(20)).size == 0
    assert textured_rows(ramp).size == 0


def test_a_pixel_counts_from_sixteen_grey_levels_on() -> None:
    image = np.zeros((1, 1, 3, 3), dtype=np.uint8)
    image[0, 0, 0, 0] = 8  # 8 to the right and 8 below: 16 together, at one of four pixels
    assert textured_fraction(image).tolist() == [0.25]
    image[0, 0, 0, 0] = 7
    assert textured_fraction(image).tolist() == [0.0]


def test_rows_keep_their_numbers_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instahide.texture_filter._CHUNK_BYTES", 3 * 16 * 16 * 2)
    images = flat_images(7)
    images[[1, 4, 6]] = np.random.default_rng(1).integers(0, 256, (3, 3, 16, 16))
    assert textured_rows(images).tolist() == [1, 4, 6]


def test_hardened_encoders_skip_flat_public_images_and_compat_ones_do_not() -> None:
    private = image_set(10, shape=(3, 16, 16))
    textured = image_set(8, shape=(3, 16, 16)).images
    public = ImageSet(np.concatenate([flat_images(5), textured]))
    assert Encoder(EncoderConfig(), private=private, public=public).public_pool_size == 8
    assert Encoder(EncoderConfig(mode="compat"), private=private, public=public).public_pool_size == 13


def test_a_pool_that_the_filter_leaves_too_small_is_refused() -> None:
    private = image_set(10, shape=(3, 16, 16))
    with pytest.raises(InvalidInputError, match=r"0 usable images \(9 of 9 are flat"):
        Encoder(EncoderConfig(), private=private, public=ImageSet(flat_images(9)))


@pytest.mark.parametrize(
    "name", ["images/cifar10_5k.npz", "images/mnist_5k.npz", "public/natural_patches_32.npz"]
)
def test_real_pictures_pass(name: str) -> None:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not here; set INSTAHIDE_DATA")
    with np.load(DATA / name) as arrays:
        images = next(arrays[key] for key in arrays if arrays[key].ndim >= 3)
    kept = textured_rows(ImageSet(images).images)
    assert len(kept) > 0.99 * len(images)
