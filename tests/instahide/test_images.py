"""ImageSet: what is taken in, in which shape it is kept, and what is refused with a hint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instahide.errors import InvalidInputError
from instahide.images import ImageSet


def pixels(*shape: int) -> np.ndarray:
    return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((5, 8, 9), (1, 8, 9)),
        ((5, 8, 9, 3), (3, 8, 9)),
        ((5, 8, 9, 1), (1, 8, 9)),
        ((5, 3, 8, 9), (3, 8, 9)),
        ((5, 3, 8, 3), (3, 8, 3)),  # both axes could be channels: channels-first wins
    ],
)
def test_every_accepted_layout_is_kept_channels_first(
    shape: tuple[int, ...], kept: tuple[int, int, int]
) -> None:
    assert ImageSet(images=pixels(*shape)).image_shape == kept


def test_channels_last_pixels_keep_their_place() -> None:
    images = pixels(2, 4, 5, 3)
    assert np.array_equal(ImageSet(images=images).images.transpose(0, 2, 3, 1), images)


def test_a_torch_tensor_is_taken_as_it_is() -> None:
    images = ImageSet(images=torch.zeros(4, 1, 8, 8, dtype=torch.uint8), labels=torch.tensor([0, 1, 2, 1]))
    assert images.num_classes == 3
    assert len(images) == 4


def test_a_memory_map_stays_a_memory_map(tmp_path) -> None:
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(3, 1, 4, 4))
    assert isinstance(ImageSet(images=mapped).images, np.memmap)


def test_labels_in_a_column_are_flattened() -> None:
    labels = ImageSet(images=pixels(3, 4, 4), labels=np.array([[2], [0], [1]])).labels
    assert labels is not None
    assert labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": np.zeros((2, 4, 4), dtype=np.float32)}, "float32, not uint8"),
        ({"images": np.full((2, 4, 4), np.nan)}, "NaN or infinite"),
        ({"images": np.zeros(4, dtype=np.uint8)}, "shape"),
        ({"images": pixels(2, 5, 4, 2)}, "neither 1 nor 3 channels"),
        ({"images": pixels(2, 0, 4)}, "no pixels"),
        ({"images": pixels(2, 4, 4), "labels": [0]}, "2 images"),
        ({"images": pixels(2, 4, 4), "labels": [0.5, 1.0]}, "not integers"),
        ({"images": pixels(2, 4, 4), "labels": [0, -1]}, "negative"),
        ({"images": pixels(2, 4, 4), "labels": [0, 2], "class_names": ("a", "b")}, "out of range"),
        ({"images": pixels(2, 4, 4), "subject_ids": ("p1",)}, "1 subject ids for 2"),
        ({"images": [[[1]], [[1, 2]]]}, "rectangular"),
    ],
)
def test_what_is_wrong_is_named_and_has_a_hint(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        ImageSet(**arguments)  # type: ignore[arg-type]
    assert caught.value.hint


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_a_subset_keeps_images_labels_and_subjects_together(chosen: list[int]) -> None:
    images = ImageSet(
        images=pixels(10, 2, 2), labels=np.arange(10), subject_ids=tuple(f"p{i}" for i in range(10))
    )
    part = images.subset(chosen)
    assert part.labels is not None
    assert part.labels.tolist() == chosen
    assert part.subject_ids == tuple(f"p{i}" for i in chosen)
    assert np.array_equal(part.images, images.images[chosen])
    assert part.class_names == images.class_names


def test_a_boolean_choice_and_an_empty_one_work() -> None:
    images = ImageSet(images=pixels(3, 2, 2), labels=np.arange(3))
    assert len(images.subset(np.array([True, False, True]))) == 2
    assert len(images.subset([])) == 0


def test_the_representation_names_no_subject() -> None:
    images = ImageSet(images=pixels(1, 2, 2), labels=[0], subject_ids=("Jane Doe",))
    assert "Jane" not in repr(images)
