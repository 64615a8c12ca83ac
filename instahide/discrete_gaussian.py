"""The discrete Gaussian on the integers, of any size, from the key stream.

    P(X = x) ∝ e^(−x²/2s²),   x ∈ ℤ                    Canonne, Kamath, Steinke, NeurIPS 2020, definition 1

``scale`` s is the standard deviation up to a factor 1 − O(e^(−2π²s²)·s²), and never above s. Canonne et al.
sample by exact rejection; here, up to s = ``LARGEST_TABLE``, magnitudes are drawn by inverting a table
at 128-bit uniforms, as in :mod:`instahide.integer_noise`, whose error per draw (relative 2^-45, additive
2^-106) holds for these tables too: the cells are values of the density, exact to a few units of the last
place of a float64 (2^-45 where x is largest), and what lies beyond 12.5 s is below 2^-110. The exact
sampler is the oracle of the tests.

**Larger scales** add two draws, X = A + k·B with scales a = 4k and b, s² = a² + k²·b². With the Poisson
summation formula and 1/t² = 1/a² + 1/(kb)²,

    P(X = x) ∝ e^(−x²/2s²) · Σ_j e^(−(kj − cx)²/2t²) = e^(−x²/2s²) · const · (1 ± 2.01·e^(−2π²t²/k²))

(c = a²-weighted share, which only shifts the lattice; so in Micciancio and Walter, CRYPTO 2017). With b ≥ 16,
t > 3.8 k and the factor is 1 ± e^(−280): nothing beside 2^-45. Such a number costs two draws.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInputError
from .integer_noise import _Reversed
from .randomness import Keystream

LARGEST_TABLE: Final = 4096.0
"""Scales beyond it are drawn as two; a table has 12.5 entries for each unit of scale."""
LARGEST_SCALE: Final = 2.0**40
SMALLEST_SCALE: Final = 0.1
_REACH: Final = 12.5
_COARSE: Final = 4


class DiscreteGaussian:
    """The distribution with one ``scale`` s (0.1 to 2^40).

    Raises:
        InvalidInputError: a scale outside that range.
    """

    def __init__(self, scale: float) -> None:
        if not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
            raise InvalidInputError(f"the scale of discrete noise is {scale:g}", hint="use 0.1 to 2^40")
        self.scale = scale
        self._fine: DiscreteGaussian | None = None
        if scale > LARGEST_TABLE:
            # The part that is multiplied stays a table where it can; its fine part fills the gaps.
            self._factor = max(2, math.ceil(scale / LARGEST_TABLE))
            self._fine = DiscreteGaussian(float(_COARSE * self._factor))
            self._coarse = DiscreteGaussian(math.sqrt(scale**2 - self._fine.scale**2) / self._factor)

    @property
    def reach(self) -> int:
        """No draw is larger than this in size."""
        if self._fine is None:
            return math.ceil(_REACH * self.scale) - 1
        return self._fine.reach + self._factor * self._coarse.reach

    @property
    def table_draws(self) -> int:
        """Draws from tables one number takes: what its error counts as."""
        return 1 if self._fine is None else self._fine.table_draws + self._coarse.table_draws

    def draw(self, stream: Keystream, count: int) -> NDArray[np.int64]:
        """``count`` independent draws."""
        if self._fine is not None:
            coarse = self._coarse.draw(stream, count)
            coarse *= self._factor
            coarse += self._fine.draw(stream, count)
            return coarse
        magnitude = _table(self.scale).draw(stream, count)
        signs = np.unpackbits(stream.read(-(-count // 8)))[:count].astype(np.int64)
        return np.asarray((1 - 2 * signs) * magnitude)


@lru_cache(maxsize=8)
def _table(scale: float) -> _Reversed:
    """Magnitudes |x|: 0 once, the others twice."""
    x = np.arange(math.ceil(_REACH * scale), dtype=np.float64) / scale
    cells = np.exp(-0.5 * x * x)
    cells[1:] *= 2
    return _Reversed(cells / math.fsum(cells))
