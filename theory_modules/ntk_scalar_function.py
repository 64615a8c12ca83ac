r"""Without bias the whole network is one function of the cosine: K(x, z) = ‖x‖ ‖z‖ f(c), whatever the depth.

The ReLU is homogeneous, so the norms leave the recursion of :mod:`theory_modules.ntk_recursion` in front. In
s = √(1 − |c|) both branches of f (c ≥ 0 and c < 0) are analytic on [0, 1], so each is a polynomial: of
degree 10 to 12 for float32 at the depths in use, and 24 for float64. The kernel of any depth then costs a
matrix product, a square root and a short polynomial an entry.

For float32 there is another form, for machines that look coefficients up: with w = ±15s of c's sign, a
quartic in w − i around every whole i from −15 to 15 but 0 (|c| above 0.9989), which belongs to both branches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from numpy.polynomial import Chebyshev, Polynomial

from .arc_cosine import chebyshev_coefficients
from .ntk_recursion import Start, tangent_kernel

DEGREES = (8, 10, 12, 16, 20, 24, 28, 32, 40)
_TOLERANCE = {torch.float32: 3e-8, torch.float64: 2e-14}
_STEPS, _PIECE_DEGREE = 15, 4  # as in the C code
_MOST_CONDITIONING = 20.0  # sum of |powers| over f's maximum: how far rounding may be magnified
# Beyond this |c| the rounding of a matrix product in the type moves f; such entries are found from
# differences.
THRESHOLD = {torch.float32: 1 - 2.0**-9, torch.float64: 1 - 1e-7}


@dataclass(frozen=True)
class ScalarFunction:
    """f as powers of t = 2s − 1, lowest first: for c ≥ 0 and for c < 0; ``error`` relative to f's maximum.

    ``pieces`` (5, 32), lowest power first, piece i in column i mod 32; ``None`` where not good enough.
    """

    positive: torch.Tensor
    negative: torch.Tensor
    error: float
    pieces: torch.Tensor | None

    def __call__(self, correlations: torch.Tensor) -> torch.Tensor:
        t = 2 * (1 - correlations.abs()).clamp(min=0).sqrt() - 1
        above, below = _horner(self.positive, t), _horner(self.negative, t)
        return torch.where(correlations < 0, below, above)


@lru_cache(maxsize=256)
def scalar_function(depth: int, num_fixed_layers: int, dtype: torch.dtype) -> ScalarFunction | None:
    """The polynomials of f_{L,L'}, fitted and checked in float64; ``None`` where no degree is good enough."""
    grid = torch.cat([torch.linspace(0, 1, 2001), torch.logspace(-8, -2, 200)]).double()
    branches = [_branch(depth, num_fixed_layers, negative) for negative in (False, True)]
    exact = [branch(grid) for branch in branches]
    largest = max(float(values.abs().max()) for values in exact)
    for degree in DEGREES:
        powers = [_in_powers(chebyshev_coefficients(branch, degree), degree) for branch in branches]
        errors = [_horner(p, 2 * grid - 1) - values for p, values in zip(powers, exact, strict=True)]
        error = max(float(part.abs().max()) for part in errors) / largest
        conditioning = max(float(p.abs().sum()) for p in powers) / largest
        if error <= _TOLERANCE[dtype] and conditioning <= _MOST_CONDITIONING:
            pieces = _pieces(branches, largest) if dtype == torch.float32 else None
            return ScalarFunction(powers[0].to(dtype), powers[1].to(dtype), error, pieces)
    return None


def _pieces(branches: list[Callable[[torch.Tensor], torch.Tensor]], largest: float) -> torch.Tensor | None:
    """Quartics through each piece's Chebyshev nodes, checked on a grid as f itself is."""
    table = torch.zeros(_PIECE_DEGREE + 1, 32, dtype=torch.float64)
    for sign, branch in zip((1, -1), branches, strict=True):
        for whole in range(1, _STEPS + 1):
            outer = 0.0 if whole == _STEPS else 0.5  # s ends at 1
            powers, error = _piece(branch, sign, whole, (-0.5, outer) if sign > 0 else (-outer, 0.5))
            if error > _TOLERANCE[torch.float32] * largest:
                return None
            table[: len(powers), sign * whole] = powers
    return table.float()


def _piece(
    branch: Callable[[torch.Tensor], torch.Tensor], sign: int, whole: int, domain: tuple[float, float]
) -> tuple[torch.Tensor, float]:
    """Powers of w − sign·whole on the domain, and their largest error there."""
    first, last = domain

    def values(share: torch.Tensor) -> torch.Tensor:
        return branch((whole + sign * (first + (last - first) * share)) / _STEPS)

    quartic = Chebyshev(chebyshev_coefficients(values, _PIECE_DEGREE).numpy(), domain=domain)
    powers = torch.from_numpy(quartic.convert(kind=Polynomial).coef)
    shares = torch.linspace(0, 1, 41, dtype=torch.float64)
    error = _horner(powers, first + (last - first) * shares) - values(shares)
    return powers, float(error.abs().max())


def _branch(depth: int, num_fixed_layers: int, negative: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    def values(s: torch.Tensor) -> torch.Tensor:
        one = torch.ones_like(s)
        start = Start(s * s, torch.full_like(s, negative, dtype=torch.bool), one, one)
        return tangent_kernel(start, depth, num_fixed_layers, bias=0.0)

    return values


def _in_powers(coefficients: torch.Tensor, degree: int) -> torch.Tensor:
    powers = Chebyshev(coefficients.numpy()).convert(kind=Polynomial).coef
    padded = torch.zeros(degree + 1, dtype=torch.float64)
    padded[: len(powers)] = torch.from_numpy(powers.copy())
    return padded


def _horner(powers: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    total = torch.full_like(t, float(powers[-1]))
    for power in powers.flip(0)[1:].tolist():
        total = total * t + power
    return total
