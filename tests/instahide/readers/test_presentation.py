"""One size, one channel count, 8 bits, upright."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from instahide import load_images
from instahide.errors import InvalidInputError
from instahide.readers import read_images
from instahide.readers.limits import UnreadableError
from instahide.readers.presentation import Presentation, present, to_eight_bits


def test_two_sizes_stop_the_reading_and_both_are_named(tmp_path, save_picture):
    save_picture("a/1.png", np.zeros((8, 9), np.uint8))
    save_picture("a/2.png", np.zeros((8, 10), np.uint8))
    with pytest.raises(InvalidInputError, match=r"a/1\.png is 9x8 and a/2\.png is 10x8") as caught:
        load_images(tmp_path)
    assert "image_size" in caught.value.hint
    assert load_images(tmp_path, image_size=8).image_shape == (1, 8, 8)


def test_grey_and_colour_stop_the_reading_unless_converted(tmp_path, save_picture):
    grey = save_picture("a/1.png")
    save_picture("a/2.png", np.full((8, 8, 3), (255, 0, 0), np.uint8))
    with pytest.raises(InvalidInputError, match=r"a/1\.png is grey and a/2\.png is colour") as caught:
        load_images(tmp_path)
    assert "channels" in caught.value.hint
    colour = load_images(tmp_path, channels=3)
    for channel in range(3):
        np.testing.assert_array_equal(colour.images[0, channel], np.asarray(Image.open(grey)))
    # ITU-R 601: luma of pure red is 0.299 · 255 = 76.2.
    assert load_images(tmp_path, channels=1).images[1, 0].tolist() == [[76] * 8] * 8


def test_crop_takes_the_largest_centred_square():
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200
    np.testing.assert_array_equal(present(wide, Presentation(image_size=4)), np.full((4, 4), 200, np.uint8))


def test_pad_keeps_the_whole_picture_on_black():
    wide = np.full((4, 12), 200, np.uint8)
    padded = present(wide, Presentation(image_size=6, fit="pad"))
    np.testing.assert_array_equal(padded[:2], 0)
    np.testing.assert_array_equal(padded[2:4], 200)
    np.testing.assert_array_equal(padded[4:], 0)


def test_shrinking_is_antialiased():
    # A one-pixel checkerboard has no detail at a quarter of its size: every pixel near the mean.
    board = ((np.indices((64, 64)).sum(axis=0) % 2) * 255).astype(np.uint8)
    small = present(board, Presentation(image_size=16)).astype(int)
    assert abs(small - 127).max() <= 8


def test_a_picture_of_the_right_size_keeps_its_exact_pixels():
    pixels = np.random.default_rng(1).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    assert present(pixels, Presentation(image_size=7)) is pixels


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_extreme_shapes_do_not_vanish(fit):
    for shape in ((1, 500), (500, 1)):
        assert present(np.zeros(shape, np.uint8), Presentation(image_size=4, fit=fit)).shape == (4, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.zeros((6, 4), np.uint8)
    upright[0, 0] = 255
    # What a camera stores for each orientation so that the viewer shows `upright` (EXIF 2.3, tag 274).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a").mkdir()
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a/x.png", exif=exif)
    np.testing.assert_array_equal(load_images(tmp_path).images[0, 0], upright)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_wrapped(tmp_path, save_picture, suffix):
    deep = np.array([[0, 256, 257], [32768, 65279, 65535]], np.uint16)
    save_picture(f"a/x.{suffix}", deep)
    # round(255 · x / 65535): 256 → 0.996, 257 → 1, 32768 → 127.5 + 0.002, 65279 → 254.004.
    assert load_images(tmp_path).images[0, 0].tolist() == [[0, 1, 1], [128, 254, 255]]


def test_twelve_bits_in_sixteen_use_the_whole_range(tmp_path, save_picture):
    save_picture("a/x.png", np.array([[0, 2048, 4095]], np.uint16))
    assert load_images(tmp_path, bit_depth=12).images[0, 0].tolist() == [[0, 128, 255]]
    with pytest.raises(InvalidInputError, match="values from 0 to 4095 do not fit in 11 bits"):
        load_images(tmp_path, bit_depth=11)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_scaling_is_the_nearest_of_the_exact_ratio(bits):
    values = np.arange(2**bits, dtype=np.uint32)
    exact = values * (255 / (2**bits - 1))
    assert np.abs(to_eight_bits(values, bits) - exact).max() <= 0.5 + 1e-9


def test_negative_values_do_not_wrap():
    with pytest.raises(UnreadableError, match="values from -1"):
        to_eight_bits(np.array([-1, 5], np.int32), 16)


def test_an_opaque_alpha_is_dropped_and_a_transparent_one_refused(tmp_path, save_picture):
    colour = np.random.default_rng(2).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    colour[..., 3] = 255
    save_picture("a/1.png", colour)
    np.testing.assert_array_equal(load_images(tmp_path).images[0], np.moveaxis(colour[..., :3], 2, 0))
    colour[0, 0, 3] = 254
    save_picture("a/2.png", colour)
    reading = read_images(tmp_path, max_bad_fraction=0.5)
    assert "transparent" in reading.quarantined[0].reason


def test_bilevel_and_palette_pictures_are_converted(tmp_path):
    (tmp_path / "a").mkdir()
    colour = Image.new("RGB", (4, 4), (10, 200, 30))
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a/p.png")
    assert load_images(tmp_path).images[0, :, 0, 0].tolist() == [10, 200, 30]
    (tmp_path / "a/p.png").unlink()
    Image.new("1", (4, 4), 1).save(tmp_path / "a/b.png")
    assert load_images(tmp_path).images.max() == 255


def test_several_pages_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    pages = [Image.new("L", (4, 4), value) for value in (1, 2)]
    pages[0].save(tmp_path / "a/x.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InvalidInputError, match="several pages"):
        load_images(tmp_path)


def test_floating_point_tiff_is_refused(tmp_path, save_picture):
    save_picture("a/x.tif", np.zeros((4, 4), np.float32))
    with pytest.raises(InvalidInputError, match="pixel type 'F'"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"image_size": 0}, {"image_size": True}, {"image_size": 9999}, {"fit": "stretch"}, {"channels": 2},
     {"bit_depth": 17}, {"max_bad_fraction": -1}, {"max_bad_fraction": float("nan")}, {"split": "dev"}],
)  # fmt: skip
def test_wrong_options_are_named(tmp_path, save_picture, wrong):
    save_picture("a/1.png")
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        load_images(tmp_path, **wrong)
