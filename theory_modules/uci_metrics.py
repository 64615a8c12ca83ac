"""How classifiers are compared over many tables, and what was published.

    mean ± deviation    of the accuracy over tables (sample deviation)
    P90, P95            share of tables on which a classifier reaches 90 % or 95 % of the best one's accuracy
    PMA                 mean of accuracy / best accuracy, ± sample deviation
    Friedman rank       mean over tables of the rank among all classifiers, ties shared, 1 the best

*Best* and *rank* depend on who takes part: with the accuracies of the 179 published classifiers they come
close to the published figures, among a handful of our own they do not.

Fernández-Delgado, Cernadas, Barro and Amorim, *Do we need hundreds of classifiers to solve real world
classification problems?*, JMLR 2014; Arora, Du, Li, Salakhutdinov, Wang and Yu, *Harnessing the power of
infinitely wide deep nets on small-data tasks*, ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from .uci_tables import UciTableError

FloatArray = NDArray[np.float64]
Accuracies = Mapping[str, Mapping[str, float]]
"""Classifier → table → accuracy in percent; what is not there is missing."""


@dataclass(frozen=True)
class Summary:
    """One row of the comparison, in percent (the rank apart)."""

    tables: int
    rank: float
    mean: float
    deviation: float
    p90: float
    p95: float
    pma: float
    pma_deviation: float


PUBLISHED = {
    "ntk": Summary(90, 28.34, 81.95, 14.10, 88.89, 72.22, 95.72, 5.17),
    "random-forest": Summary(90, 32.56, 81.56, 13.90, 86.67, 67.78, 95.38, float("nan")),
    "gaussian": Summary(90, 34.87, 81.03, 15.09, 85.56, 72.22, 94.69, float("nan")),
    "polynomial": Summary(87, 32.78, 80.91, float("nan"), 82.76, 65.52, 94.53, float("nan")),
}
"""NTK: Arora et al. 2020. The others: from the published accuracies of rf_caret, svm_C and svmPoly over the
same 90 tables (87 have a result of svmPoly), ranks among all published classifiers."""

PUBLISHED_ON_TABLE = {"primary-tumor": {"ntk": 51.5, "random-forest": 48.5, "gaussian": 48.4}}
"""Arora et al. 2020, with a network of five layers."""


def summarize(ours: Accuracies, others: Accuracies | None = None) -> dict[str, Summary]:
    """A row for each of our classifiers, over the tables where it has a result.

    Args:
        others: further classifiers to be measured against, such as the published ones.
    """
    pool = {**{f"published:{name}": dict(values) for name, values in (others or {}).items()}, **ours}
    tables = sorted({table for values in ours.values() for table in values})
    matrix = np.array([[values.get(table, np.nan) for table in tables] for values in pool.values()])
    ranks = _ranks(matrix)
    best = np.nanmax(matrix, axis=0)
    rows = dict(zip(pool, range(len(pool)), strict=True))
    return {name: _summary(matrix[rows[name]], ranks[rows[name]], best) for name in ours if ours[name]}


def read_published(path: Path) -> dict[str, dict[str, float]]:
    """A table of accuracies: a first line of classifiers' names, then a data set's name and its accuracies.

    Words are separated by blanks, commas or tabs; what is not a number is a missing result; numbers are
    percent, or shares where none exceeds 1. The first line may begin with a word above the data sets' names.

    Raises:
        UciTableError: no such file, or lines of different lengths.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UciTableError(f"{path} cannot be read: {error.strerror}") from error
    lines = [line.replace(",", " ").replace(";", " ").split() for line in text.splitlines()]
    lines = [words for words in lines if words and not words[0].startswith(("#", "%"))]
    if len(lines) < 2 or len(lines[1]) < 2:
        raise UciTableError(
            f"{path} is no table of accuracies\nhint: a line of classifiers, then a line for each data set"
        )
    names = lines[0][-(len(lines[1]) - 1) :]
    values: dict[str, dict[str, float]] = {name: {} for name in names}
    for words in lines[1:]:
        if len(words) != len(names) + 1:
            raise UciTableError(
                f"{path}: {words[0]} has {len(words) - 1} results for {len(names)} classifiers\n"
                "hint: write NA where a result is missing"
            )
        for name, word in zip(names, words[1:], strict=True):
            number = _number(word)
            if number is not None:
                values[name][words[0].lower().replace("_", "-")] = number
    largest = max((number for row in values.values() for number in row.values()), default=100.0)
    factor = 100.0 if largest <= 1 else 1.0
    return {name: {table: factor * number for table, number in row.items()} for name, row in values.items()}


def _number(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if np.isfinite(number) and number >= 0 else None


def _ranks(matrix: FloatArray) -> FloatArray:
    """Rank of each classifier on each table among those with a result there; NaN without."""
    ranks = np.full(matrix.shape, np.nan)
    for column in range(matrix.shape[1]):
        there = ~np.isnan(matrix[:, column])
        ranks[there, column] = rankdata(-matrix[there, column])
    return ranks


def _summary(row: FloatArray, ranks: FloatArray, best: FloatArray) -> Summary:
    there = ~np.isnan(row)
    share = row[there] / np.where(best[there] > 0, best[there], 1.0)
    return Summary(
        tables=int(there.sum()),
        rank=float(ranks[there].mean()),
        mean=float(row[there].mean()),
        deviation=_deviation(row[there]),
        p90=100 * float((share >= 0.90 - 1e-12).mean()),
        p95=100 * float((share >= 0.95 - 1e-12).mean()),
        pma=100 * float(share.mean()),
        pma_deviation=_deviation(100 * share),
    )


def _deviation(values: FloatArray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
