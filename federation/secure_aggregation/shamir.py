"""Shamir's sharing of byte strings over GF(2^8), many secrets at once.

    f(x) = s + a_1 x + ... + a_{t-1} x^{t-1},  a_k uniform bytes;  share of site x: f(x),  x = 1..255
    s = Σ_i λ_i f(x_i),   λ_i = Π_{j≠i} x_j / (x_j + x_i)          from any t shares

byte by byte, in GF(2)[X] / (X^8 + X^4 + X^3 + X + 1), the field of AES. Fewer than t shares of a
byte are independent of it, whatever the bytes are: no assumption is used. Addition is xor, and a
product with a constant is one look-up in a row of the 256 x 256 table.

Shamir, How to share a secret, CACM 1979. The field: FIPS 197, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from instahide.errors import InvalidInputError

Bytes = NDArray[np.uint8]
_FIELD_POLYNOMIAL: Final = 0x11B


def _tables() -> tuple[Bytes, Bytes]:
    """(256, 256) products and (256,) inverses, from powers of the generator 3."""
    powers = [1]
    while len(powers) < 255:
        doubled = powers[-1] << 1
        tripled = doubled ^ powers[-1]
        powers.append(tripled ^ _FIELD_POLYNOMIAL if tripled & 0x100 else tripled)
    exponent = np.array(powers * 2, dtype=np.uint8)
    logarithm = np.zeros(256, dtype=np.int64)
    logarithm[powers] = np.arange(255)
    products = exponent[logarithm[:, None] + logarithm[None, :]]
    products[0, :] = products[:, 0] = 0
    inverses = exponent[(255 - logarithm) % 255]
    inverses[0] = 0
    return products, inverses


PRODUCTS, INVERSES = _tables()


def split(secrets: Bytes, coefficients: Bytes, points: Sequence[int]) -> Bytes:
    """Shares of every byte of ``secrets`` at each of ``points``.

    Args:
        secrets: (...) bytes.
        coefficients: (t - 1, ...) uniform bytes, fresh for this call; t is the threshold.
        points: distinct, 1..255.

    Returns:
        (len(points), ...) bytes.
    """
    _check_points(points)
    if coefficients.shape[1:] != secrets.shape:
        raise InvalidInputError("coefficients do not match the secrets", hint="shape (t - 1, *secrets.shape)")
    shares = np.zeros((len(points), *secrets.shape), dtype=np.uint8)
    for share, point in zip(shares, points, strict=True):
        row = PRODUCTS[point]
        for coefficient in coefficients[::-1]:
            share[...] = row[share ^ coefficient]
        share ^= secrets
    return shares


def interpolate(shares: Bytes, points: Sequence[int], at: int = 0) -> Bytes:
    """f(``at``) from t shares (t, ...) taken at t ``points``; the secret for ``at`` = 0."""
    _check_points(points)
    value = np.zeros(shares.shape[1:], dtype=np.uint8)
    for share, point in zip(shares, points, strict=True):
        weight = 1
        for other in points:
            if other != point:
                weight = int(PRODUCTS[weight, PRODUCTS[other ^ at, INVERSES[other ^ point]]])
        value ^= PRODUCTS[weight][share]
    return value


def _check_points(points: Sequence[int]) -> None:
    if len(set(points)) != len(points) or not all(1 <= point <= 255 for point in points):
        raise InvalidInputError("shares need distinct points from 1 to 255", hint="use the roster's indices")
