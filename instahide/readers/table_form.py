"""What the columns of a table mean: their names, ranges, gaps and classes, agreed by all who use the table.

Hospitals that train one model must turn a number into the same input everywhere, so ranges are written down
beforehand instead of being measured on anybody's patients. They stand in ``columns.toml`` beside the table:

    label = "num"                       # the column that holds the class
    missing = ["?"]                     # what stands where nothing is known; an empty cell always does
    [classes]                           # label as written -> class; classes are numbered in code point order
    "0" = "healthy"
    "1" = "disease"
    [[columns]]                         # every column, in the file's order
    name = "age"
    low = 20.0                          # values at or below come out as the smallest input
    high = 80.0
    [[columns]]
    name = "chol"
    low = 100.0
    high = 400.0
    zero-is-missing = true              # a 0 that no patient can have
    [[columns]]
    name = "num"                        # the label has no range

For the four processed heart-disease tables of the UCI repository (Detrano et al. 1989) the form comes with
the package.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from .limits import Limits, display_name, read_bytes, reading

FORM_NAME = "columns.toml"
HEART_DISEASE = re.compile(r"processed\.(cleveland|hungarian|switzerland|va)\.data")
_FORM_KEYS = {"label", "missing", "classes", "columns"}
_COLUMN_KEYS = {"name", "low", "high", "zero-is-missing"}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of numbers; ``low`` < ``high`` is its range in the model's input."""

    name: str
    low: float
    high: float
    zero_is_missing: bool = False


@dataclass(frozen=True, kw_only=True)
class TableForm:
    """d ``columns`` of numbers in the file's order; the label's is at ``label_place`` among all d + 1."""

    columns: tuple[Column, ...]
    label_place: int
    label_name: str
    classes: dict[str, str]
    missing: tuple[str, ...] = ("?",)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes in the order of their numbers."""
        return tuple(sorted(set(self.classes.values())))

    @property
    def all_names(self) -> list[str]:
        """Names of all d + 1 columns, in the file's order."""
        names = [column.name for column in self.columns]
        return [*names[: self.label_place], self.label_name, *names[self.label_place :]]


def form_of(table: Path, limits: Limits) -> TableForm | None:
    """The form of the table at ``table``: ``columns.toml`` beside it, or one that comes with the package.

    Raises InvalidInputError for a form that is not one; None where there is none.
    """
    beside = table.with_name(FORM_NAME)
    if beside.is_file():
        return read_form(beside, limits)
    if HEART_DISEASE.fullmatch(table.name):
        return read_form(Path(__file__).with_name("heart_disease.toml"), limits)
    return None


def read_form(path: Path, limits: Limits) -> TableForm:
    """Read a ``columns.toml``. Raises InvalidInputError naming what does not belong."""
    with reading(path, "a TOML file in UTF-8"):
        text = read_bytes(path, limits).decode("utf-8")
    try:
        return _form(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInputError(
            f"{display_name(path.name)} is not a table's form: {error}",
            hint="give label, [classes] and one [[columns]] with name, low and high for each column",
        ) from error


def _form(values: dict[str, Any]) -> TableForm:
    _only(values, _FORM_KEYS)
    label, columns, place = values["label"], [], None
    for number, entry in enumerate(values["columns"]):
        _only(entry, _COLUMN_KEYS)
        if entry["name"] == label:
            place = number
            continue
        low, high = float(entry["low"]), float(entry["high"])
        if not low < high:
            raise ValueError(f"column {entry['name']!r}: low is {low:g} and high {high:g}")
        columns.append(
            Column(
                name=str(entry["name"]),
                low=low,
                high=high,
                zero_is_missing=entry.get("zero-is-missing", False),
            )
        )
    names = [column.name for column in columns]
    if place is None or not columns or len(set(names)) < len(names):
        raise ValueError("every column once, the label's among them")
    classes = {str(text): str(name) for text, name in values["classes"].items()}
    if len(set(classes.values())) < 2:
        raise ValueError("at least two classes")
    return TableForm(
        columns=tuple(columns),
        label_place=place,
        label_name=str(label),
        classes=classes,
        missing=tuple(str(text) for text in values.get("missing", ["?"])),
    )


def _only(table: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}")
