"""The real data sets: counts as their index states them."""

from __future__ import annotations

import numpy as np
import pytest

from instahide import load_images
from instahide.readers import read_images


@pytest.mark.parametrize(
    ("file", "train", "test", "shape", "num_classes"),
    [
        ("medical/bccd_cells_32.npz", 1493, 340, (3, 32, 32), 3),
        ("medical/breastmnist.npz", 546, 156, (1, 28, 28), 2),
        ("medical/pneumoniamnist.npz", 4708, 624, (1, 28, 28), 2),
        ("images/cifar10_5k.npz", 5000, 1000, (3, 32, 32), 10),
        ("images/fashion_mnist_10k.npz", 10000, 2000, (1, 28, 28), 10),
        ("images/mnist_5k.npz", 5000, 1000, (1, 28, 28), 10),
    ],
)
def test_array_files(real_data, file, train, test, shape, num_classes):
    for split, count in (("train", train), ("test", test)):
        images = load_images(real_data / file, split=split)
        assert (len(images), images.image_shape, images.num_classes) == (count, shape, num_classes)
        with np.load(real_data / file) as stored:
            key = f"x_{split}" if f"x_{split}" in stored else f"{split}_images"
            raw = stored[key]
        expected = raw[:, None] if raw.ndim == 3 else np.moveaxis(raw, 3, 1)
        np.testing.assert_array_equal(images.images, expected)


def test_a_public_pool_has_no_labels(real_data):
    pool = load_images(real_data / "public/natural_patches_32.npz")
    assert (len(pool), pool.labels) == (1860, None)


def test_dicom_folder(real_data):
    pytest.importorskip("pydicom")
    reading = read_images(real_data / "dicom", image_size=64, channels=1, max_bad_fraction=0.5)
    assert {file.name: file.reason for file in reading.quarantined} == {
        "emri_small.dcm": "10 frames in one file: export single frames",
        "rtdose.dcm": "RTDOSE object, not a picture",
        "test-SR.dcm": "SR object, not a picture",
    }
    assert reading.images.images.shape == (6, 1, 64, 64)
    # MR_small and its RLE-compressed twin come third from last and second from last: same pixels.
    mr_small, mr_small_rle = reading.images.images[3:5]
    np.testing.assert_array_equal(mr_small, mr_small_rle)
    assert mr_small.std() > 10
