"""Gaussian and Laplace noise on a grid, drawn from the key stream: what the guarantees need of noise.

Axes: M values of a table.

**Why not floats.** Noise drawn as floating-point numbers and added to floating-point values leaves gaps
that depend on the value under it: for Laplace noise a handful of releases gives the value back, whatever
epsilon was claimed (Mironov, CCS 2012); the same holds of float Gaussians (Jin et al., S&P 2022). Here
nothing secret-dependent is a float any more when noise meets it. With q the values rounded to whole
numbers of a grid of step h, what leaves is

    q + round(Z / h),    Z ~ N(0, s²) or Laplace(s),    h = s / units                             (1)

which *equals* round((h·q + Z) / h): rounding applied to the ideal continuous mechanism, hence as private
as that one is, with the sensitivity of the rounded values. Every theorem about the continuous
mechanism applies as it stands. Rounding first may change a difference by one step in each coordinate;
the accountants add that step (:func:`grid_step`): a coarse grid costs budget, never truth.

**How exact the draws are.** P(round(Z/h) = j) is tabled and sampled by inverse distribution function with
128-bit uniforms. Gaussian cells come from h·φ(x)·(1 + h²(x² − 1)/24), the cell's integral to relative
2^-58 for h = 2^-14. Laplace magnitudes are geometric, and the digits of a geometric number are
independent, so two small tables serve. A tabled probability differs from the true one by at most a
relative 2^-45, and besides by amounts that sum to less than 2^-106 (flooring at 2^-128, and the tail cut
off at 12 standard deviations or 76 b). n draws therefore turn an ideal (ε, δ) into
(ε + 2a, δ·e^a + (1 + e^(ε + a))·η) with a = n·2^-45, η = n·2^-106: :func:`sampling_error`. Not covered: how
long a draw takes, and that ChaCha20 is a pseudo-random function rather than a random one.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .randomness import Keystream

NOISE_LAWS: Final = ("gaussian", "laplace")
GAUSSIAN_UNITS: Final = 2**14
"""Grid steps in one standard deviation."""
LAPLACE_UNITS: Final = 2**20
"""Grid steps in one Laplace scale b; an L1 sensitivity grows by a step a coordinate, so finer."""
RELATIVE_ERROR: Final = 2.0**-45
ADDITIVE_ERROR: Final = 2.0**-106
MOST_EPSILON: Final = 30.0
"""Beyond it e^ε times the sampler's error may not be small against δ; larger ε are reported as infinite."""
_GAUSSIAN_REACH: Final = 12
_LAPLACE_REACH: Final = 76
_LOW_DIGITS: Final = 2**12
_WORD: Final = 2**64


def grid_step(law: str, scale: float) -> float:
    """h of equation (1): values are rounded to multiples of this before noise of ``scale`` is added."""
    return scale / (GAUSSIAN_UNITS if law == "gaussian" else LAPLACE_UNITS)


def add_noise(stream: Keystream, values: NDArray[np.floating], law: str, scale: float) -> NDArray[np.float64]:
    """``values`` rounded to the grid, plus noise: standard deviation ``scale``, or Laplace b = ``scale``."""
    step = grid_step(law, scale)
    whole = np.rint(np.asarray(values, dtype=np.float64) / step).astype(np.int64)
    return np.asarray((whole + draw_noise(stream, whole.size, law).reshape(whole.shape)) * step)


def draw_noise(stream: Keystream, count: int, law: str) -> NDArray[np.int64]:
    """``count`` independent draws of round(Z / h), in whole steps."""
    magnitude = _gaussian_table().draw(stream, count) if law == "gaussian" else _laplace(stream, count)
    signs = np.unpackbits(stream.read(-(-count // 8)))[:count].astype(np.int64)
    return np.asarray((1 - 2 * signs) * magnitude)


def sampling_error(num_draws: int) -> tuple[float, float]:
    """(a, η): ``num_draws`` draws of ours turn an ideal (ε, δ) into (ε + 2a, δ·e^a + (1 + e^(ε + a))·η)."""
    return num_draws * RELATIVE_ERROR, num_draws * ADDITIVE_ERROR


def ideal_delta(num_draws: int, target_delta: float) -> tuple[float, float]:
    """(δ, extra ε): what an ideal mechanism must keep, so that ours keeps (ε + extra ε, ``target_delta``).

    Holds for every ε up to ``MOST_EPSILON``.
    """
    a, eta = sampling_error(num_draws)
    return (target_delta - (1 + math.exp(MOST_EPSILON + a)) * eta) * math.exp(-a), 2 * a


class NoiseTable:
    """A distribution on 0..M-1, drawn by inverting its distribution function at 128-bit uniforms."""

    def __init__(self, probabilities: NDArray[np.float64]) -> None:
        whole = [int(math.ldexp(float(p), 128)) for p in probabilities]
        total, cumulative = sum(whole), 0
        bounds = []
        for weight in whole[:-1]:  # the last value takes what flooring left
            cumulative += (weight << 128) // total
            bounds.append(cumulative)
        self._high = np.array([bound // _WORD for bound in bounds], dtype=np.uint64)
        self._low = np.array([bound % _WORD for bound in bounds], dtype=np.uint64)

    def draw(self, stream: Keystream, count: int) -> NDArray[np.int64]:
        """``count`` independent draws."""
        high = stream.words(count)
        index = np.searchsorted(self._high, high, side="left")
        # Below a bound's high word all is decided; exactly on it (rare) the low words decide.
        tied = np.flatnonzero((index < len(self._high)) & (self._high.take(index, mode="clip") == high))
        low = stream.words(tied.size)
        while tied.size:
            at = index[tied]
            beyond = self._low[at] <= low
            index[tied[beyond]] += 1
            tied, low = tied[beyond], low[beyond]
            inside = index[tied] < len(self._high)
            tied, low = tied[inside], low[inside]
            same = self._high[index[tied]] == high[tied]
            tied, low = tied[same], low[same]
        return index.astype(np.int64, copy=False)


@cache
def _gaussian_table() -> NoiseTable:
    """Magnitudes of round(N(0, 1) / h), from 0 to 12 standard deviations."""
    h = 1.0 / GAUSSIAN_UNITS
    x = np.arange(_GAUSSIAN_REACH * GAUSSIAN_UNITS) * h
    cells = h * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) * (1 + h * h * (x * x - 1) / 24)
    cells[1:] *= 2
    # Reversed, so that the value which takes the rounding of all others is the common 0.
    return _Reversed(cells)


@cache
def _laplace_tables() -> tuple[NoiseTable, NoiseTable, NoiseTable]:
    """Zero or not; high and low digits of a geometric number of ratio e^(-h)."""
    h = 1.0 / LAPLACE_UNITS
    at_zero = -math.expm1(-h / 2)
    coarse = _LOW_DIGITS * h
    high = np.exp(-coarse * np.arange(int(_LAPLACE_REACH / coarse)))
    low = np.exp(-h * np.arange(_LOW_DIGITS))
    return NoiseTable(np.array([at_zero, math.exp(-h / 2)])), _Reversed(high), NoiseTable(low)


def _laplace(stream: Keystream, count: int) -> NDArray[np.int64]:
    """P(0) = 1 − e^(−h/2); P(i) = e^(−h/2)·(1 − e^(−h))·e^(−h(i − 1)) for i ≥ 1."""
    beyond, high, low = (table.draw(stream, count) for table in _laplace_tables())
    return np.asarray(beyond * (1 + high * _LOW_DIGITS + low))


class _Reversed(NoiseTable):
    """The table of M−1..0, read backwards."""

    def __init__(self, probabilities: NDArray[np.float64]) -> None:
        super().__init__(probabilities[::-1])
        self._last = len(probabilities) - 1

    def draw(self, stream: Keystream, count: int) -> NDArray[np.int64]:
        """``count`` independent draws."""
        return np.asarray(self._last - super().draw(stream, count))
