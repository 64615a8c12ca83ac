"""Sharing against a second implementation, byte by byte, and against its own promise of secrecy."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.secure_aggregation import shamir
from instahide.errors import InvalidInputError


def product(a: int, b: int) -> int:
    """The field's product by shifts and the polynomial: FIPS 197, section 4.2."""
    result = 0
    while b:
        if b & 1:
            result ^= a
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return result


def share_of(secret: int, coefficients: list[int], point: int) -> int:
    """The polynomial at ``point``, power by power."""
    result, power = secret, 1
    for coefficient in coefficients:
        power = product(power, point)
        result ^= product(coefficient, power)
    return result


def test_the_product_table_is_the_fields() -> None:
    expected = [[product(a, b) for b in range(256)] for a in range(256)]
    assert shamir.PRODUCTS.tolist() == expected


def test_the_products_of_the_standard() -> None:
    """FIPS 197, sections 4.2 and 4.2.1."""
    assert shamir.PRODUCTS[0x57, 0x83] == 0xC1
    assert shamir.PRODUCTS[0x57, 0x13] == 0xFE


def test_every_inverse_inverts() -> None:
    assert all(shamir.PRODUCTS[x, shamir.INVERSES[x]] == 1 for x in range(1, 256))


def test_shares_are_the_polynomials_values() -> None:
    secret, coefficients = os.urandom(9), os.urandom(3 * 9)
    points = [1, 2, 100, 255]
    shares = shamir.split(
        np.frombuffer(secret, np.uint8), np.frombuffer(coefficients, np.uint8).reshape(3, 9), points
    )
    for row, point in zip(shares, points, strict=True):
        for place in range(9):
            own = [coefficients[9 * power + place] for power in range(3)]
            assert row[place] == share_of(secret[place], own, point)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_threshold_of_shares_gives_the_secret_and_every_other_share(data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, 9))
    points = data.draw(st.lists(st.integers(1, 255), min_size=threshold, max_size=14, unique=True))
    secrets = np.frombuffer(os.urandom(2 * 32), np.uint8).reshape(2, 32)
    coefficients = np.frombuffer(os.urandom((threshold - 1) * 64), np.uint8).reshape(-1, 2, 32)
    shares = shamir.split(secrets, coefficients, points)
    chosen = data.draw(st.permutations(range(len(points))))[:threshold]
    taken, at = shares[chosen], [points[place] for place in chosen]
    assert np.array_equal(shamir.interpolate(taken, at), secrets)
    for share, point in zip(shares, points, strict=True):
        assert np.array_equal(shamir.interpolate(taken, at, point), share)


def test_two_shares_of_three_fit_every_secret_equally_often() -> None:
    """Exhaustive: over all 65,536 polynomials of one secret, every pair of shares occurs exactly once,

    so for any other secret it does too, and a pair of shares says nothing about which.
    """
    coefficients = np.array(list(itertools.product(range(256), repeat=2)), dtype=np.uint8).T
    for secret in (0, 1, 0xA7):
        secrets = np.full(65536, secret, dtype=np.uint8)
        first, second = shamir.split(secrets, coefficients, [3, 200])
        pairs = first.astype(np.int64) * 256 + second
        assert np.array_equal(np.bincount(pairs, minlength=65536), np.ones(65536))


@pytest.mark.parametrize("points", [[0, 1], [1, 1], [256]])
def test_points_must_be_distinct_and_in_range(points: list[int]) -> None:
    with pytest.raises(InvalidInputError, match="distinct points"):
        shamir.split(np.zeros(1, np.uint8), np.zeros((1, 1), np.uint8), points)


def test_coefficients_must_match_the_secrets() -> None:
    with pytest.raises(InvalidInputError, match="do not match"):
        shamir.split(np.zeros(2, np.uint8), np.zeros((1, 1), np.uint8), [1])
