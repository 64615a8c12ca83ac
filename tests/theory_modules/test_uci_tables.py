"""Tables as files: read, left out with a reason, refused where they are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.theory_modules.uci_made import table, write
from theory_modules.uci_tables import (
    UciTableError,
    describe,
    inner_split,
    list_tables,
    read_table,
)


def test_what_is_written_is_read(tmp_path: Path):
    made = table()
    read = read_table(write(tmp_path / "made", made))
    np.testing.assert_allclose(read.features, made.features, rtol=1e-8)
    assert (read.labels == made.labels).all()
    assert read.name == "made"
    for ours, theirs in zip((read.tuning, *read.folds), (made.tuning, *made.folds), strict=True):
        assert (ours.train == theirs.train).all()
        assert (ours.test == theirs.test).all()


def test_large_tables_and_those_with_a_test_file_are_left_out_with_the_reason(tmp_path: Path):
    for name, words in (
        ("a", {}),
        ("b", {"n_patrons2": 7}),
        ("c", {"n_patrons1": 5001}),
        ("d", {"n_patrons1": 5000}),
    ):
        write(tmp_path / name, table(), **words)
    (tmp_path / "notes").mkdir()
    listing = list_tables(tmp_path)
    assert [path.name for path in listing.tables] == ["a", "d"]
    assert listing.left_out == {"b": "7 rows in a separate test file", "c": "5001 rows, more than 5000"}
    assert describe(listing)[0] == "2 tables"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("t.txt", "n_clases= 2\n", "no number of rows"),
        ("t.txt", "n_patrons1= 59\nfich1= t_R.dat\n", "has 60 rows; t.txt says 59"),
        ("t_R.dat", "header\n1 2\n", "2 columns"),
        ("t_R.dat", "header\n1 x 0\n", "not a table of numbers"),
        ("conxuntos.dat", "0 1\n1 2\n", "both to train and to test"),
        ("conxuntos.dat", "0 0\n1 2\n", "a row twice"),
        ("conxuntos.dat", "0 60\n1 2\n", r"outside 0 \.\. 59"),
        ("conxuntos_kfold.dat", "0\n1\n", "has 2 lines of row numbers; 8 are needed"),
        ("conxuntos_kfold.dat", "a\nb\n", "not lines of row numbers"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file, text, message):
    folder = write(tmp_path / "t", table())
    (folder / file).write_text(text)
    with pytest.raises(UciTableError, match=message):
        read_table(folder)


@pytest.mark.parametrize(("value", "message"), [("nan", "NaN or infinity"), ("0.5", "classes 0, 1")])
def test_values_that_are_none_are_named(tmp_path: Path, value, message):
    folder = write(tmp_path / "t", table())
    lines = (folder / "t_R.dat").read_text().splitlines()
    lines[5] = "\t".join([*lines[5].split("\t")[:-1], value])
    (folder / "t_R.dat").write_text("\n".join(lines))
    with pytest.raises(UciTableError, match=message):
        read_table(folder)


def test_a_missing_file_is_named(tmp_path: Path):
    folder = write(tmp_path / "t", table())
    (folder / "t_R.dat").unlink()
    with pytest.raises(UciTableError, match=r"t_R\.dat"):
        read_table(folder)


def test_inner_halves_share_every_class_evenly():
    labels = np.repeat([0, 1, 2], [11, 6, 1])
    rows = np.arange(18)
    split = inner_split(labels, rows, seed=4)
    assert sorted([*split.train, *split.test]) == rows.tolist()
    counts = [np.bincount(labels[part], minlength=3) for part in (split.train, split.test)]
    assert np.abs(counts[0] - counts[1]).max() <= 1
    assert (inner_split(labels, rows, seed=4).train == split.train).all()
    assert not np.array_equal(inner_split(labels, rows, seed=5).train, split.train)
