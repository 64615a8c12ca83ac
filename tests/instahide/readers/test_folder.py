"""Folders of pictures: layouts, order, names, and what is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instahide import load_images
from instahide.errors import InvalidInputError
from instahide.readers import QuarantineWarning, read_images
from instahide.readers.limits import Limits


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_class_folders_become_labels_in_code_point_order(tmp_path, save_picture):
    for name in ("b/1.png", "a/2.png", "B/3.png", "b/0.png"):
        save_picture(name)
    images = load_images(tmp_path)
    assert images.class_names == ("B", "a", "b")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2, 2]
    order = ["B/3.png", "a/2.png", "b/0.png", "b/1.png"]
    expected = np.stack([pixels_of(tmp_path / name) for name in order])[:, None]
    np.testing.assert_array_equal(images.images, expected)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "pgm", "PNG", "TIFF"])
def test_lossless_formats_give_the_exact_pixels_in_any_letter_case(tmp_path, save_picture, suffix):
    path = save_picture(f"a/x.{suffix}")
    np.testing.assert_array_equal(load_images(tmp_path).images[0, 0], pixels_of(path))


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp", "ppm"])
def test_colour_formats_arrive_channels_first(tmp_path, save_picture, suffix):
    colour = np.zeros((16, 24, 3), np.uint8)
    colour[..., 0] = 255
    save_picture(f"a/x.{suffix}", colour)
    images = load_images(tmp_path)
    assert images.image_shape == (3, 16, 24)
    red, green, blue = images.images[0].mean(axis=(1, 2))
    assert red > 245
    assert max(green, blue) < 10


def test_a_colour_picture_three_pixels_wide_is_not_mistaken_for_channels_first(tmp_path, save_picture):
    colour = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    save_picture("a/x.png", colour)
    images = load_images(tmp_path)
    assert images.image_shape == (3, 3, 5)
    np.testing.assert_array_equal(images.images[0], np.moveaxis(colour, 2, 0))


def test_split_folders_give_the_training_split_unless_asked(tmp_path, save_picture):
    for name in ("train/a/1.png", "train/b/1.png", "Validation/b/1.png", "test/b/1.png", "test/b/2.png"):
        save_picture(name)
    assert len(load_images(tmp_path)) == 2
    assert len(load_images(tmp_path, split="test")) == 2
    validation = load_images(tmp_path, split="val")
    assert validation.labels is not None
    # Class "a" is missing from this split and still has its number.
    assert validation.labels.tolist() == [1]
    assert validation.class_names == ("a", "b")


def test_a_flat_folder_is_a_pool_without_labels(tmp_path, save_picture):
    save_picture("2.png")
    save_picture("1.v2.scan.png")  # dots in a name are only dots
    images = load_images(tmp_path)
    assert len(images) == 2
    assert images.labels is None
    assert images.class_names is None


def test_an_empty_class_folder_stays_a_class(tmp_path, save_picture):
    save_picture("b/1.png")
    (tmp_path / "a").mkdir()
    images = load_images(tmp_path)
    assert images.class_names == ("a", "b")
    assert images.labels is not None
    assert images.labels.tolist() == [1]


def test_hidden_files_and_texts_are_passed_over(tmp_path, save_picture):
    save_picture("a/1.png")
    for name in (".DS_Store", "Thumbs.db", "README", "notes.txt", "LICENSE.md", "._1.png"):
        (tmp_path / "a" / name).write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    reading = read_images(tmp_path)
    assert len(reading.images) == 1
    assert reading.quarantined == ()


def test_class_names_given_fix_the_numbers(tmp_path, save_picture):
    save_picture("pneumonia/1.png")
    images = load_images(tmp_path, class_names=["normal", "pneumonia"])
    assert images.labels is not None
    assert images.labels.tolist() == [1]
    with pytest.raises(InvalidInputError, match="'pneumonia' is not among"):
        load_images(tmp_path, class_names=["normal"])


def test_the_same_accented_name_in_two_normal_forms_is_one_class(tmp_path, save_picture):
    save_picture("train/e\u0301/1.png")
    save_picture("test/\u00e9/1.png")
    assert load_images(tmp_path).class_names == ("\u00e9",)


def test_one_bad_file_in_two_hundred_is_set_aside_with_a_warning(tmp_path, save_picture):
    for number in range(200):
        save_picture(f"a/{number:03}.png")
    whole = (tmp_path / "a/100.png").read_bytes()
    (tmp_path / "a/100.png").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(QuarantineWarning, match=r"a/100\.png: corrupt or truncated"):
        images = load_images(tmp_path)
    assert len(images) == 199
    np.testing.assert_array_equal(images.images[100, 0], pixels_of(tmp_path / "a/101.png"))


def test_more_than_one_per_cent_bad_stops_with_names_and_reasons(tmp_path, save_picture):
    for number in range(10):
        save_picture(f"a/{number}.png")
    (tmp_path / "a/9.png").write_bytes(b"no picture")
    with pytest.raises(InvalidInputError, match=r"1 of 10 files .* a/9\.png: not a picture"):
        load_images(tmp_path)
    reading = read_images(tmp_path, max_bad_fraction=0.1)
    assert len(reading.images) == 9
    assert [file.name for file in reading.quarantined] == ["a/9.png"]


def test_links_pipes_and_unknown_files_are_set_aside(tmp_path, save_picture):
    inside = save_picture("data/a/1.png")
    secret = save_picture("elsewhere/secret.png")
    (tmp_path / "data/a/2.png").symlink_to(secret)
    (tmp_path / "data/b").symlink_to(secret.parent)
    os.mkfifo(tmp_path / "data/a/3.png")
    (tmp_path / "data/a/4.gif").write_bytes(b"GIF89a")
    reading = read_images(tmp_path / "data", max_bad_fraction=1.0)
    np.testing.assert_array_equal(reading.images.images[0, 0], pixels_of(inside))
    assert {file.name: file.reason for file in reading.quarantined} == {
        "a/2.png": "symbolic link, not followed",
        "a/3.png": "not a regular file",
        "a/4.gif": "not a supported picture format",
        "b": "symbolic link, not followed",
    }


def test_a_file_that_lies_about_its_format_never_meets_another_decoder(tmp_path, save_picture):
    gif = tmp_path / "a" / "x.png"
    gif.parent.mkdir()
    Image.new("L", (8, 8)).save(gif, format="GIF")
    with pytest.raises(InvalidInputError, match="not a picture in a supported format"):
        load_images(tmp_path)


def test_pixels_are_counted_from_the_header_before_decoding(tmp_path, save_picture):
    path = save_picture("a/bomb.png")
    data = bytearray(path.read_bytes())
    data[16:24] = (50_000).to_bytes(4, "big") * 2  # IHDR now declares 2.5 gigapixels
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match="above the cap"):
        load_images(tmp_path)
    data[16:24] = (9_000).to_bytes(4, "big") * 2  # 81 megapixels: Pillow itself would go on
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match="9000x9000 pixels, above the cap of 64,000,000"):
        load_images(tmp_path)


def test_file_size_and_memory_caps_hold(tmp_path, save_picture):
    save_picture("a/1.png")
    with pytest.raises(InvalidInputError, match="above the cap of 10"):
        load_images(tmp_path, limits=Limits(max_file_bytes=10))
    from instahide.errors import RefusedError

    with pytest.raises(RefusedError, match="64 bytes of memory"):
        load_images(tmp_path, limits=Limits(max_decoded_bytes=63))


def test_folders_nested_too_deep_are_set_aside(tmp_path, save_picture):
    save_picture("a/1.png")
    save_picture("a/b/c/d/2.png")
    reading = read_images(tmp_path, max_bad_fraction=1.0, limits=Limits(max_depth=2))
    assert [file.reason for file in reading.quarantined] == ["folders nested deeper than 2"]


def test_control_characters_in_names_are_escaped(tmp_path, save_picture):
    save_picture("a/1.png")
    (tmp_path / "a" / "\x1b[31m\n.png").write_bytes(b"x")
    (tmp_path / "a" / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    names = [file.name for file in read_images(tmp_path, max_bad_fraction=1.0).quarantined]
    assert names == ["a/\\x1b[31m\\n.png", "a/\\xff.png"]


def test_mistakes_are_named(tmp_path, save_picture):
    with pytest.raises(InvalidInputError, match="no such file"):
        load_images(tmp_path / "missing")
    with pytest.raises(InvalidInputError, match="no picture in"):
        load_images(tmp_path)
    save_picture("train/a/1.png")
    with pytest.raises(InvalidInputError, match="no test split; splits found: train"):
        load_images(tmp_path, split="test")
    save_picture("extra/1.png")
    with pytest.raises(InvalidInputError, match="extra stands beside the split folder train"):
        load_images(tmp_path)
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(InvalidInputError, match=r"x\.bin is in no format that is known"):
        load_images(tmp_path / "x.bin")


def test_two_folders_for_one_split_are_refused(tmp_path, save_picture):
    save_picture("val/a/1.png")
    save_picture("valid/a/1.png")
    with pytest.raises(InvalidInputError, match="val and valid are both the val split"):
        load_images(tmp_path)
