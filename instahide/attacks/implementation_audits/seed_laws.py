"""How a seed becomes coefficients: the generators and samplers that published code used.

Axes: S seeds, k coefficients of a row.

A law is the real generator, to replay one seed, and where it pays the same draws for many seeds at once, of
their absolute values: InstaHide's coefficients are |normal| draws divided by their sum.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .mersenne_twister import Words, first_outputs, first_outputs_of_python

Floats = NDArray[np.float64]
MAX_NORMALS = 80  # of one seed: numpy's rejection then stays within the generator's first 227 words


@dataclass(frozen=True, eq=False)
class SeedLaw:
    """How a seed becomes rows of k unnormalised coefficients.

    Args:
        name: the calls that draw them.
        replay: (seed, rows, k) → (rows, k), by the real generator.
        normals: (seeds, how many) → (how many, S) |normal| draws in their order, for many seeds at once;
            ``None`` if only ``replay`` can be used.
    """

    name: str
    replay: Callable[[int, int, int], Floats]
    normals: Callable[[Words, int], Floats] | None = None


def numpy_normals(seeds: Words, count: int) -> Floats:
    """(count, S) of ``numpy.random.seed(s); numpy.random.normal(size=count)``: the polar method.

    x₁, x₂ uniform on (−1, 1) until r² = x₁² + x₂² < 1; then f·x₂ and f·x₁ with f = √(−2 ln r² / r²).
    """
    return _polar(_doubles, seeds, count)


def _polar(doubles: Callable[[Words, int], Floats], seeds: Words, count: int) -> Floats:
    pairs = -(-count // 2)
    tried = pairs + 3 + int(2 * math.sqrt(pairs))  # a pair is accepted with chance π/4
    uniforms = 2.0 * doubles(seeds, 2 * tried) - 1.0
    x1, x2 = uniforms[0::2], uniforms[1::2]
    square = x1 * x1 + x2 * x2
    accepted = (square < 1.0) & (square > 0.0)
    place = np.cumsum(accepted, axis=0) - 1
    out = np.full((2 * pairs, len(seeds)), np.nan)  # NaN where the tries ran out: decided by replay
    take = accepted & (place < pairs)
    _, columns = np.nonzero(take)
    factor = np.sqrt(-2.0 * np.log(square[take]) / square[take])
    out[2 * place[take], columns] = factor * x2[take]
    out[2 * place[take] + 1, columns] = factor * x1[take]
    return np.asarray(np.abs(out[:count]))


def _doubles(seeds: Words, count: int) -> Floats:
    """(count, S) numpy's 53-bit uniforms: (a·2²⁶ + b) / 2⁵³ from the top 27 and 26 bits of two words."""
    words = first_outputs(seeds, 2 * count)
    high = (words[0::2] >> np.uint32(5)).astype(np.float64)
    return np.asarray((high * 67_108_864.0 + (words[1::2] >> np.uint32(6))) * 2.0**-53)


def torch_normals(seeds: Words, count: int) -> Floats:
    """(count, S) of ``torch.manual_seed(s); torch.randn(n, k)``, at least 16 values: Box-Muller by blocks.

    Sixteen 24-bit uniforms u make √(−2 ln(1 − u_j))·cos 2πu_{j+8} and, in places 8..15, the sines.
    """
    words = first_outputs(seeds, -(-count // 16) * 16)
    uniforms = (words & np.uint32(0xFFFFFF)).astype(np.float64) * 2.0**-24
    blocks = uniforms.reshape(-1, 2, 8, len(seeds))
    radius = np.sqrt(-2.0 * np.log1p(-blocks[:, 0]))
    angle = 2.0 * np.pi * blocks[:, 1]
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return np.asarray(np.abs(normals.reshape(-1, len(seeds))[:count]))


def python_normals(seeds: Words, count: int) -> Floats:
    """(count, S) of ``random.seed(s); random.gauss(0, 1)``: √(−2 ln(1 − v))·cos 2πu, then the sine."""
    words = first_outputs_of_python(seeds, 4 * -(-count // 2))
    high = (words[0::2] >> np.uint32(5)).astype(np.float64)
    uniforms = (high * 67_108_864.0 + (words[1::2] >> np.uint32(6))) * 2.0**-53
    angle, radius = 2.0 * np.pi * uniforms[0::2], np.sqrt(-2.0 * np.log1p(-uniforms[1::2]))
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return np.asarray(np.abs(normals.reshape(-1, len(seeds))[:count]))


def _replay_torch(seed: int, rows: int, k: int) -> Floats:
    generator = torch.Generator().manual_seed(seed)
    size = (max(rows, 16), k)
    return np.asarray(np.abs(torch.randn(size, generator=generator).double().numpy())[:rows])


def _replay_python(seed: int, rows: int, k: int) -> Floats:
    draw = random.Random(seed).gauss  # noqa: S311  the broken generator is the point
    rows_of_draws = [[abs(draw(0, 1)) for _ in range(k)] for _ in range(rows)]
    return np.array(rows_of_draws, dtype=np.float64)


_legacy = np.random.RandomState()  # seeded anew for every replay: making one costs more than seeding it


def _replay_numpy(seed: int, rows: int, k: int) -> Floats:
    _legacy.seed(seed)
    return np.abs(_legacy.normal(size=(rows, k)))


def _replay_dirichlet(seed: int, rows: int, k: int) -> Floats:
    _legacy.seed(seed)
    return _legacy.dirichlet(np.ones(k), size=rows)


SEED_LAWS: tuple[SeedLaw, ...] = (
    SeedLaw("numpy.random.seed, normal", _replay_numpy, numpy_normals),
    SeedLaw("torch.manual_seed, randn", _replay_torch, torch_normals),
    SeedLaw("random.seed, gauss", _replay_python, python_normals),
    SeedLaw(
        "numpy.random.default_rng, normal",
        lambda seed, rows, k: np.abs(np.random.default_rng(seed).normal(size=(rows, k))),
    ),
    SeedLaw("numpy.random.seed, dirichlet", _replay_dirichlet),
)
