"""The UCI classification tables in the preparation of Fernández-Delgado et al. (JMLR 2014).

A folder a table:

    NAME.txt              lines ``key= value``: rows of the table (n_patrons1) and of a test file (n_patrons2)
    NAME_R.dat            a header, then number, d features of mean 0 and deviation 1, class 0 .. K − 1
    conxuntos.dat         two lines of row numbers from 0: a random half to train on while tuning, the other
    conxuntos_kfold.dat   four pairs of lines, training rows and test rows

The four pairs are four independent 75/25 splits, not a partition. Test rows never lie in the training rows of
their pair, but they do lie among the tuning rows: tuning sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MAX_ROWS = 5000


class UciTableError(ValueError):
    """A folder that is not a table of this format; the text says which file and what is wrong with it."""


@dataclass(frozen=True, repr=False)
class Split:
    """Row numbers to train on and to test on."""

    train: IntArray
    test: IntArray


@dataclass(frozen=True, repr=False)
class UciTable:
    """``features`` (n, d), ``labels`` (n,) in 0 .. K − 1, the split to tune on and the pairs to score on."""

    name: str
    features: FloatArray
    labels: IntArray
    tuning: Split
    folds: tuple[Split, ...]


@dataclass(frozen=True)
class Listing:
    """Folders that hold a table of the published comparison; those left out, each with the reason."""

    tables: tuple[Path, ...]
    left_out: dict[str, str]


def list_tables(folder: Path, *, max_rows: int = MAX_ROWS) -> Listing:
    """The tables in a folder that the comparison takes: at most ``max_rows`` rows, no separate test file.

    Raises:
        UciTableError: no such folder, no table in it, or a description that cannot be read.
    """
    if not folder.is_dir():
        raise UciTableError(f"{folder} is not a folder\nhint: give the folder that holds one folder a table")
    tables, left_out = [], {}
    for path in sorted(folder.iterdir()):
        if not (path / f"{path.name}.txt").is_file():
            continue
        rows, test_rows = _sizes(_description(path), path)
        if test_rows:
            left_out[path.name] = f"{test_rows} rows in a separate test file"
        elif rows > max_rows:
            left_out[path.name] = f"{rows} rows, more than {max_rows}"
        else:
            tables.append(path)
    if not tables:
        raise UciTableError(
            f"{folder} holds no table to compare on\n"
            "hint: each table is a folder NAME with NAME.txt, NAME_R.dat, conxuntos.dat, conxuntos_kfold.dat"
        )
    return Listing(tuple(tables), left_out)


def number_of_rows(folder: Path) -> int:
    """As the description says, without reading the table."""
    return _sizes(_description(folder), folder)[0]


def read_table(folder: Path) -> UciTable:
    """Read and check one table.

    Raises:
        UciTableError: a file is missing or holds something else.
    """
    description = _description(folder)
    path = folder / description.get("fich1", f"{folder.name}_R.dat")
    rows = _read_rows(path)
    count = _sizes(description, folder)[0]
    if len(rows) != count:
        raise UciTableError(f"{path} has {len(rows)} rows; {folder.name}.txt says {count}")
    features, labels = rows[:, 1:-1], rows[:, -1]
    if not np.isfinite(rows).all():
        raise UciTableError(f"{path} holds a NaN or infinity")
    if (labels != np.floor(labels)).any() or labels.min() < 0:
        raise UciTableError(f"{path}: the last column must hold classes 0, 1, ...")
    tuning = _read_splits(folder / "conxuntos.dat", count, pairs=1)
    folds = _read_splits(folder / "conxuntos_kfold.dat", count, pairs=4)
    return UciTable(
        folder.name, np.ascontiguousarray(features), labels.astype(np.int64), tuning[0], tuple(folds)
    )


def inner_split(labels: IntArray, rows: IntArray, *, seed: int) -> Split:
    """Halves of ``rows``, each class shared as evenly as it can be; the same for the same seed."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(rows)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return Split(np.sort(by_class[::2]), np.sort(by_class[1::2]))


def _description(folder: Path) -> dict[str, str]:
    path = folder / f"{folder.name}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UciTableError(f"{path} cannot be read: {error}") from error
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _sizes(description: dict[str, str], folder: Path) -> tuple[int, int]:
    try:
        return int(description["n_patrons1"]), int(description.get("n_patrons2", 0))
    except (KeyError, ValueError):
        raise UciTableError(f"{folder.name}.txt has no number of rows (n_patrons1= ...)") from None


def _read_rows(path: Path) -> FloatArray:
    try:
        rows = np.loadtxt(path, skiprows=1, ndmin=2, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise UciTableError(f"{path} is not a table of numbers below a header: {error}") from error
    if rows.shape[1] < 3:
        raise UciTableError(f"{path} has {rows.shape[1]} columns; number, features and class are needed")
    return rows


def _read_splits(path: Path, count: int, *, pairs: int) -> list[Split]:
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [np.array([int(word) for word in line], dtype=np.int64) for line in lines]
    except (OSError, ValueError) as error:
        raise UciTableError(f"{path} is not lines of row numbers: {error}") from error
    if len(rows) != 2 * pairs:
        raise UciTableError(f"{path} has {len(rows)} lines of row numbers; {2 * pairs} are needed")
    return [_checked_split(path, *rows[k : k + 2], count=count) for k in range(0, len(rows), 2)]


def _checked_split(path: Path, train: IntArray, test: IntArray, *, count: int) -> Split:
    for part in (train, test):
        if part.min() < 0 or part.max() >= count:
            raise UciTableError(f"{path} names a row outside 0 .. {count - 1}")
        if len(np.unique(part)) < len(part):
            raise UciTableError(f"{path} names a row twice in one line")
    if np.intersect1d(train, test).size:
        raise UciTableError(f"{path} names a row both to train and to test on")
    return Split(train, test)


def describe(listing: Listing) -> Sequence[str]:
    """One line for what is compared, one for each table left out."""
    lines = [f"{len(listing.tables)} tables"]
    return lines + [f"left out: {name} ({why})" for name, why in listing.left_out.items()]
