"""The grid shows each encoding as it is and as its absolute value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instahide.errors import InvalidInputError
from instahide.picture_grid import picture_grid, write_picture_grid


def test_a_pair_shows_the_signed_values_and_the_absolute_ones() -> None:
    values = np.zeros((1, 1, 64, 64), np.float32)
    values[0, 0, :32], values[0, 0, 32:] = -1.0, 0.5
    grid = picture_grid(values)
    assert grid.shape == (2 + 64 + 2, 2 + 64 + 2 + 64 + 2 + 2, 3)
    signed, absolute = grid[2:66, 2:66], grid[2:66, 68:132]
    assert (signed[:32] == 0).all()  # (-1 + 1) / 2
    assert (signed[32:] == 191).all()  # (0.5 + 1) / 2 * 255 = 191.25
    assert (absolute[:32] == 255).all()
    assert (absolute[32:] == 128).all()  # 0.5 * 255 = 127.5, rounded to even


def test_colours_stay_in_their_channels() -> None:
    values = np.zeros((1, 3, 64, 64), np.float32)
    values[0, 1] = 1.0
    absolute = picture_grid(values)[2:66, 68:132]
    assert (absolute == [0, 255, 0]).all()


@pytest.mark.parametrize(
    ("count", "columns", "cells"), [(1, 4, (1, 1)), (4, 4, (1, 4)), (5, 4, (2, 4)), (3, 1, (3, 1))]
)
def test_samples_are_laid_out_in_rows(count: int, columns: int, cells: tuple[int, int]) -> None:
    height, width, _ = picture_grid(np.zeros((count, 1, 64, 64), np.float32), columns=columns).shape
    assert (height, width) == (cells[0] * 66 + 2, cells[1] * 134 + 2)


def test_small_images_are_enlarged_by_a_whole_factor_and_large_ones_kept() -> None:
    assert picture_grid(np.zeros((1, 1, 28, 28), np.float32)).shape[0] == 2 * 28 + 4
    assert picture_grid(np.zeros((1, 1, 200, 100), np.float32)).shape[0] == 204


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (257, 1, 8, 8), (1, 2, 8, 8), (8, 8)])
def test_what_cannot_be_drawn_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="cannot be drawn"):
        picture_grid(np.zeros(shape, np.float32))


def test_the_file_is_a_png_of_the_grid(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (6, 3, 32, 32)).astype(np.float32)
    write_picture_grid(values, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.format == "PNG"
        assert (np.asarray(picture) == picture_grid(values)).all()


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be written"):
        write_picture_grid(np.zeros((1, 1, 8, 8), np.float32), tmp_path / "nowhere" / "grid.png")
