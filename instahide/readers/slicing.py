"""How a volume becomes pictures: which plane, which slices, which grey values.

A file ``volumes.toml`` in the data folder (beside the manifest, where there is one) says it for
every volume of the data set; each line is optional::

    axis = "axial"              # or "coronal", "sagittal"
    every = 3                   # of the slices from first to last, each third
    first = 20                  # counted from 0 at the feet, the back or the left; last included
    last = 119
    drop-empty = true           # leave out slices that show nothing
    window = [-160, 240]        # these values become 0 and 255, after slope and intercept (CT: Hounsfield)
    percentiles = [1, 99]       # or these percentiles of each volume; not both

Without ``axis`` a NIfTI volume is cut into axial slices and a DICOM series stays as it was acquired. Without
``window`` and ``percentiles`` a DICOM series keeps the window its files agree on; all others are spread from
their 0.5th to their 99.5th percentile, one range for the whole volume. DICOM files that are no slices, as
radiographs, are not touched by any of this.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidInputError
from .limits import Limits, UnreadableError, display_name, read_bytes, reading

Axis = Literal["axial", "coronal", "sagittal"]
AXES: dict[str, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Plane → the axis of right, anterior, superior that it cuts across."""

SLICING_FILE = "volumes.toml"
_PAIR = "two numbers, the smaller one first"


@dataclass(frozen=True, kw_only=True)
class Slicing:
    """Settings of the module's page; raises InvalidInputError for values out of range."""

    axis: Axis | None = None
    every: int = 1
    first: int = 0
    last: int | None = None
    drop_empty: bool = False
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.axis is not None and self.axis not in AXES:
            raise InvalidInputError(f"axis is {self.axis!r}", hint="choose axial, coronal or sagittal")
        for name, least in (("every", 1), ("first", 0), ("last", 0)):
            value = getattr(self, name)
            if (value is not None or name != "last") and (type(value) is not int or value < least):
                raise InvalidInputError(f"{name} is {value!r}", hint=f"give a whole number, at least {least}")
        if self.last is not None and self.last < self.first:
            raise InvalidInputError(
                f"slices from {self.first} to {self.last} are none", hint="let last be no less than first"
            )
        if type(self.drop_empty) is not bool:
            raise InvalidInputError(f"drop-empty is {self.drop_empty!r}", hint="give true or false")
        for name in ("window", "percentiles"):
            object.__setattr__(self, name, _pair(name, getattr(self, name)))
        if self.percentiles is not None and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise InvalidInputError(
                f"percentiles are {list(self.percentiles)}", hint="give two from 0 to 100"
            )
        if self.window is not None and self.percentiles is not None:
            raise InvalidInputError("both window and percentiles are given", hint="give one of them")

    def chosen(self, count: int) -> range:
        """Indices of the slices to take of ``count``; UnreadableError where there are none."""
        stop = count if self.last is None else min(count, self.last + 1)
        if self.first >= stop:
            raise UnreadableError(f"{count} slices, none from number {self.first} on")
        return range(self.first, stop, self.every)


def read_slicing(folder: Path, limits: Limits) -> Slicing:
    """The settings in ``volumes.toml`` of a data folder; the defaults where there is none.

    Raises:
        InvalidInputError: a setting that is unknown or out of range.
        IntegrityError: not a text file, or a link.
    """
    path = folder / SLICING_FILE
    if not path.is_symlink() and not path.exists():
        return Slicing()
    with reading(path, "a TOML file in UTF-8"):
        text = read_bytes(path, limits).decode("utf-8")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(
            f"{SLICING_FILE} is not TOML: {error}", hint='a line is like: axis = "axial"'
        ) from error
    known = {item.name.replace("_", "-"): item.name for item in fields(Slicing)}
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise InvalidInputError(
            f"{SLICING_FILE}: unknown setting {display_name(unknown[0])!r}",
            hint=f"known are {', '.join(known)}",
        )
    try:
        return Slicing(**{known[key]: value for key, value in table.items()})
    except InvalidInputError as error:
        raise InvalidInputError(f"{SLICING_FILE}: {error.message}", hint=error.hint) from None


def _pair(name: str, value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    numbers = list(value) if isinstance(value, (list, tuple)) else []
    good = len(numbers) == 2 and all(type(x) in (int, float) and math.isfinite(x) for x in numbers)
    if not good or not numbers[0] < numbers[1]:
        raise InvalidInputError(f"{name} is {value!r}", hint=f"give {_PAIR}, such as {name} = [1, 99]")
    return float(numbers[0]), float(numbers[1])
