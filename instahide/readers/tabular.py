"""Tables of numbers with gaps: rows of patients instead of pictures, on the same road to a model.

A row of d numbers becomes a picture of one channel and two lines of d pixels, 8 bits each: above, every value
in its column's range (:mod:`.table_form`), a gap in the middle of it; below, 255 where there was a gap and 0
where not. So a model sees what is known and what is not, and a row's picture depends on that row alone.
``Table.completed`` takes the values of an imputer instead of middles.

**Rows are not to be encoded.** The encoder refuses them (``instahide.images.TOO_FEW_NUMBERS``). InstaHide's
mask and mixture hide a picture, if at all, among thousands of pixels. A mask of d numbers is one of 2^d, few
enough to try for a dozen; and columns with few possible values (sex, chest pain, vessels) tell which mixture
is right: under the published law with k = 4, eight such columns gave the coefficients of 89 in 100 encodings
away, in 0.2 s each (``tests/instahide/test_rows_cannot_be_hidden.py``).
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..images import ImageSet
from .catalogue import WHOLE, ArrayPart, Catalogue
from .limits import Limits, display_name, read_bytes, reading
from .table_form import FORM_NAME, TableForm, form_of

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Table:
    """n rows of d numbers: ``values`` (n, d) with NaN in gaps, ``labels`` (n,) class numbers.

    ``gaps`` (n, d) is true where the file had nothing; it stays so when ``values`` are completed.
    """

    values: FloatArray
    labels: NDArray[np.int64]
    gaps: NDArray[np.bool_]
    form: TableForm

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.form.columns)

    def completed(self, values: FloatArray) -> Table:
        """The same rows with an imputer's ``values`` (n, d) and no gap left.

        Raises InvalidInputError for another shape, or where something is missing still.
        """
        given = np.asarray(values, dtype=np.float64)
        if given.shape != self.values.shape or not np.isfinite(given).all():
            raise InvalidInputError(
                f"completed values of shape {given.shape} for {self.values.shape}, or with gaps",
                hint="give a number for every entry",
            )
        return replace(self, values=given, gaps=np.zeros_like(self.gaps))

    def rows(self, chosen: NDArray[Any]) -> Table:
        """The rows at ``chosen`` (numbers or a boolean array)."""
        return replace(self, values=self.values[chosen], labels=self.labels[chosen], gaps=self.gaps[chosen])

    def to_images(self) -> ImageSet:
        """The rows as (n, 1, 2, d) pictures, as the module says."""
        low = np.array([column.low for column in self.form.columns])
        high = np.array([column.high for column in self.form.columns])
        share = np.clip((self.values - low) / (high - low), 0.0, 1.0)
        above = np.rint(255 * np.where(np.isfinite(share), share, 0.5)).astype(np.uint8)
        below = np.where(self.gaps, 255, 0).astype(np.uint8)
        return ImageSet(np.stack([above, below], axis=1)[:, None], self.labels, self.form.class_names)


def read_table_of_numbers(
    path: Path, limits: Limits | None = None, *, form: TableForm | None = None
) -> Table:
    """Read a table with its form (:mod:`.table_form`); a first line of names is allowed.

    Raises:
        InvalidInputError: no form, another number of columns, a cell that is no number, an unknown label.
        IntegrityError: not a text file.
    """
    limits = limits or Limits()
    form = form or form_of(path, limits)
    if form is None:
        raise InvalidInputError(
            f"nothing says what the columns of {display_name(path.name)} are",
            hint=f"write {FORM_NAME} beside it: the columns' names and ranges, and the classes",
        )
    with reading(path, "a table in UTF-8"):
        text = read_bytes(path, limits).decode("utf-8-sig")
    separator = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows = [
        (reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))
    ]
    if rows and [cell.lower() for cell in rows[0][1]] == [name.lower() for name in form.all_names]:
        rows = rows[1:]
    if not rows:
        raise InvalidInputError(f"{display_name(path.name)} holds no row", hint="add one line a patient")
    numbers = {name: number for number, name in enumerate(form.class_names)}
    values, labels = np.empty((len(rows), len(form.columns))), np.empty(len(rows), dtype=np.int64)
    for place, (line, cells) in enumerate(rows):
        where = f"{display_name(path.name)} line {line}"
        if len(cells) != len(form.columns) + 1:
            raise InvalidInputError(
                f"{where} has {len(cells)} cells, not {len(form.columns) + 1}", hint="correct the line"
            )
        label = cells.pop(form.label_place)
        if label not in form.classes:
            raise InvalidInputError(
                f"{where}: unknown label {display_name(label)!r}",
                hint=f"labels are {', '.join(form.classes)}; a row without one is of no use here",
            )
        labels[place] = numbers[form.classes[label]]
        values[place] = [_number(cell, form, where) for cell in cells]
    zeros = np.array([column.zero_is_missing for column in form.columns])
    values[(values == 0) & zeros] = np.nan
    return Table(values, labels, ~np.isfinite(values), form)


def read_numbers(path: Path, limits: Limits) -> Catalogue:
    """The catalogue of a table of numbers; its rows are read now."""
    table = read_table_of_numbers(path, limits)
    images = table.to_images()
    part = ArrayPart(WHOLE, lambda: images.images, images.labels)
    return Catalogue("table of numbers", (part,), images.class_names, (), path.stat().st_size)


def _number(cell: str, form: TableForm, where: str) -> float:
    if not cell or cell in form.missing:
        return np.nan
    try:
        value = float(cell)
    except ValueError:
        value = np.inf
    if not np.isfinite(value):
        raise InvalidInputError(
            f"{where}: {display_name(cell)!r} is no number",
            hint=f"a gap is an empty cell or one of: {', '.join(form.missing)}",
        )
    return value
