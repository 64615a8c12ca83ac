"""idx files, plain and gzipped."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from instahide import load_images
from instahide.errors import IntegrityError, InvalidInputError, RefusedError
from instahide.readers.limits import Limits

X = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
Y = np.array([3, 1, 2, 0, 1], dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def save(path: Path, array: np.ndarray) -> None:
    data = idx_bytes(array)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-", "."])
def test_a_folder_holds_training_and_test_files(tmp_path, ending, mark):
    save(tmp_path / f"train-images{mark}idx3-ubyte{ending}", X)
    save(tmp_path / f"train-labels{mark}idx1-ubyte{ending}", Y)
    save(tmp_path / f"t10k-images{mark}idx3-ubyte{ending}", X[:2])
    save(tmp_path / f"t10k-labels{mark}idx1-ubyte{ending}", Y[1:3])
    train, test = load_images(tmp_path), load_images(tmp_path, split="test")
    np.testing.assert_array_equal(train.images[:, 0], X)
    assert train.labels.tolist() == Y.tolist()
    assert test.labels.tolist() == [1, 2]
    assert test.num_classes == 4


def test_an_images_file_finds_its_labels(tmp_path):
    save(tmp_path / "my-images-idx3-ubyte", X)
    assert load_images(tmp_path / "my-images-idx3-ubyte").labels is None
    save(tmp_path / "my-labels-idx1-ubyte.gz", Y)
    assert load_images(tmp_path / "my-images-idx3-ubyte").labels.tolist() == Y.tolist()


def test_the_unpacked_file_is_taken_when_both_are_there(tmp_path):
    save(tmp_path / "train-images-idx3-ubyte", X)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"not read")
    assert len(load_images(tmp_path)) == 5


def test_a_large_file_stays_on_disk(tmp_path):
    save(tmp_path / "train-images-idx3-ubyte", X)
    images = load_images(tmp_path, limits=Limits(map_above_bytes=10)).images
    assert isinstance(images.base, np.memmap)
    np.testing.assert_array_equal(images[:, 0], X)


def test_truncated_and_damaged_streams_are_integrity_errors(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = gzip.compress(idx_bytes(X))
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # the CRC at the end
    for data in (whole[:-20], whole[:-2], bytes(flipped), b"", gzip.compress(idx_bytes(X) + b"more")):
        path.write_bytes(data)
        with pytest.raises(IntegrityError):
            load_images(path)
    raw = tmp_path / "train-images-idx3-ubyte"
    for data in (idx_bytes(X)[:-1], idx_bytes(X) + b"x", idx_bytes(X)[:9], idx_bytes(Y), b"\0\0\x0d\x03"):
        raw.write_bytes(data)
        with pytest.raises(IntegrityError):
            load_images(raw)


def test_a_gzip_bomb_is_refused_by_its_declared_size(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + b"\x7f\xff\xff\xff" * 3 + bytes(1000)))
    with pytest.raises(RefusedError, match="above the cap"):
        load_images(path)


def test_a_header_that_declares_memory_the_stream_does_not_fill(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    # 8 GiB declared, 1 kB held: refused after 1 kB, with no more than that touched.
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + b"\x00\x00\x08\x00" * 3 + bytes(1000)))
    with pytest.raises(IntegrityError, match="ends after 1,000 of 8,589,934,592"):
        load_images(path)


def test_two_training_files_in_one_folder_need_a_choice(tmp_path):
    save(tmp_path / "a-train-images-idx3-ubyte", X)
    save(tmp_path / "b-train-images-idx3-ubyte", X)
    with pytest.raises(InvalidInputError, match="second train split"):
        load_images(tmp_path)
