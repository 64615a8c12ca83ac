"""Tables of numbers: what is read, what it looks like to a model, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import IntegrityError, InvalidInputError, RefusedError
from instahide.images import ImageSet
from instahide.readers import load_images, read_images
from instahide.readers.limits import Limits
from instahide.readers.table_form import HEART_DISEASE, form_of, read_form
from instahide.readers.tabular import read_table_of_numbers

FORM = """
label = "ill"
missing = ["?", "n/a"]
[classes]
no = "healthy"
mild = "sick"
grave = "sick"
[[columns]]
name = "age"
low = 0
high = 100
[[columns]]
name = "ill"
[[columns]]
name = "pressure"
low = 50
high = 150
zero-is-missing = true
"""
ROWS = "age,ill,pressure\n40,no,100\n?,mild,0\n\n 100 , grave , 1e3 \n-3,no,\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "columns.toml").write_text(FORM)
    (tmp_path / "ward.csv").write_text(ROWS)
    return tmp_path / "ward.csv"


def test_numbers_gaps_and_classes_are_read(table: Path) -> None:
    found = read_table_of_numbers(table)
    nan = np.nan
    assert np.array_equal(found.values, [[40, 100], [nan, nan], [100, 1000], [-3, nan]], equal_nan=True)
    assert found.labels.tolist() == [0, 1, 1, 0]
    assert found.form.class_names == ("healthy", "sick")
    assert found.column_names == ("age", "pressure")
    assert np.array_equal(found.gaps, np.isnan(found.values))


def test_a_row_becomes_a_line_of_values_and_a_line_of_gaps(table: Path) -> None:
    images = load_images(table)
    assert (images.image_shape, images.class_names) == ((1, 2, 2), ("healthy", "sick"))
    assert images.is_table
    # 40 of 100 is 102 of 255; 100 in 50..150 is 127.5, rounded to even; beyond a range is its end.
    assert images.images[:, 0].tolist() == [
        [[102, 128], [0, 0]],
        [[128, 128], [255, 255]],
        [[255, 255], [0, 0]],
        [[0, 128], [0, 255]],
    ]


def test_a_rows_picture_depends_on_that_row_alone(table: Path) -> None:
    whole = load_images(table).images
    table.write_text("40,no,100\n")
    assert np.array_equal(load_images(table).images, whole[:1])


def test_the_format_is_told_and_a_resize_is_refused(table: Path) -> None:
    assert read_images(table).format == "table of numbers"
    assert load_images(table, channels=1).is_table
    for change in ({"image_size": 8}, {"channels": 3}):
        with pytest.raises(InvalidInputError, match="no size"):
            load_images(table, **change)


def test_completed_values_leave_no_gap_and_must_be_whole(table: Path) -> None:
    found = read_table_of_numbers(table)
    whole = found.completed(np.where(found.gaps, 75.0, found.values))
    assert whole.to_images().images[1, 0].tolist() == [[191, 64], [0, 0]]
    assert len(whole.rows(np.array([True, False, False, True]))) == 2
    for wrong in (found.values, found.values[:2]):
        with pytest.raises(InvalidInputError, match="gaps"):
            found.completed(wrong)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("40,no\n", "line 1 has 2 cells, not 3"),
        ("age,ill,pressure\n40,perhaps,3\n", "line 2: unknown label 'perhaps'"),
        ("4o,no,3\n", "'4o' is no number"),
        ("40,no,nan\n", "'nan' is no number"),
        ("age,ill,pressure\n", "holds no row"),
        ("40,,3\n", "unknown label ''"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_line(table: Path, rows: str, message: str) -> None:
    table.write_text(rows)
    with pytest.raises(InvalidInputError) as caught:
        load_images(table)
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("low = 0\n", "low = 200\n"), "low is 200"),
        (('label = "ill"', 'label = "well"'), "'low'"),
        (("high = 100", "hihg = 100"), "hihg"),
        (('grave = "sick"', 'grave = "sick"\n[extra]'), "extra"),
        (('no = "healthy"', 'no = "sick"'), "two classes"),
        (('name = "pressure"', 'name = "age"'), "every column once"),
        (("[classes]", "[classes"), "Expected"),
    ],
)
def test_a_form_that_is_not_one_is_named(table: Path, change: tuple[str, str], message: str) -> None:
    table.with_name("columns.toml").write_text(FORM.replace(*change))
    with pytest.raises(InvalidInputError, match=r"columns\.toml") as caught:
        load_images(table)
    assert message in caught.value.message


def test_bytes_that_are_no_text_are_a_damaged_file(table: Path) -> None:
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(IntegrityError):
        load_images(table)


def test_without_a_form_a_csv_is_a_manifest_as_before(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(ROWS)
    assert form_of(tmp_path / "a.csv", Limits()) is None
    with pytest.raises(InvalidInputError, match="no column for the picture's path"):
        load_images(tmp_path / "a.csv")
    with pytest.raises(InvalidInputError, match="nothing says") as caught:
        read_table_of_numbers(tmp_path / "a.csv")
    assert "columns.toml" in caught.value.hint


def test_heart_disease_comes_with_its_form(tmp_path: Path) -> None:
    (tmp_path / "processed.va.data").write_text(
        "63,1,4,140,260,0,1,112,1,3,2,?,?,2\n44,1,4,0,0,0,1,127,0,0,?,?,?,0\n"
    )
    found = read_table_of_numbers(tmp_path / "processed.va.data")
    assert found.form.class_names == ("absent", "present")
    assert found.labels.tolist() == [1, 0]
    assert found.column_names[:5] == ("age", "sex", "cp", "trestbps", "chol")
    assert found.gaps[1].nonzero()[0].tolist() == [3, 4, 10, 11, 12]
    assert HEART_DISEASE.fullmatch("processed.cleveland.data")
    assert form_of(tmp_path / "processed.data", Limits()) is None


def test_rows_are_not_encoded_and_the_reason_is_given(table: Path) -> None:
    with pytest.raises(RefusedError, match="can be guessed") as caught:
        Encoder(EncoderConfig(num_mixed=2), private=load_images(table))
    assert "differential privacy" in caught.value.hint


def test_noise_with_a_proof_may_cover_rows(table: Path) -> None:
    pytest.importorskip("dp_accounting")
    law = EncoderConfig(
        num_mixed=2,
        num_private=2,
        mode="dp",
        noise_law="gaussian",
        noise_scale=1.0,
        label_noise_scale=1.0,
    )
    assert len(Encoder(law, private=load_images(table)).encode_epoch()) == 4


def test_a_picture_is_no_table() -> None:
    assert not ImageSet(np.zeros((2, 3, 3), np.uint8), np.array([0, 1])).is_table
    assert not ImageSet(np.zeros((2, 3, 2, 3), np.uint8), np.array([0, 1])).is_table


def test_the_form_is_found_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "columns.toml").write_text(FORM)
    form = read_form(tmp_path / "columns.toml", Limits())
    assert form.all_names == ["age", "ill", "pressure"]
    assert form.columns[1].zero_is_missing
