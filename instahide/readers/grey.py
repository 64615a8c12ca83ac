"""Measured values to the 256 greys of a picture: a range is spread linearly, what lies beyond is clipped."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .limits import UnreadableError

PERCENTILES = (0.5, 99.5)


def to_byte(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Finite values rounded to the nearest of 0..255."""
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def percentile_range(
    values: NDArray[Any], percentiles: tuple[float, float] = PERCENTILES
) -> tuple[float, float]:
    """(low, high): two percentiles, or the extremes where nearly all values are one and the same."""
    low, high = (float(value) for value in np.percentile(values, percentiles))
    if high <= low:  # nearly constant: the few outliers are all there is to show
        low, high = float(values.min()), float(values.max())
    return low, high


def spread(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """``low`` to 0, ``high`` to 255; all black where they are one. UnreadableError beyond float64."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    if not math.isfinite(high - low):
        raise UnreadableError("values too large to be spread over 256 greys")
    with np.errstate(over="ignore"):  # beyond the range, and clipped
        return to_byte((values - low) * (255 / (high - low)))
