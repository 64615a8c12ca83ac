"""Rebuilding the seeds of a round from the sites' answers, and finding who gave wrong shares.

A rebuilt seed is right if its expansion has the check value its dealer reported. If one is wrong,
other choices of t answers are tried; the right seed's polynomial then shows whose shares do not
lie on it. The pair (dealer, answerer) is all that can be known: the dealer may have sealed a wrong
share, or the answerer may have sent one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from instahide.errors import FederationError

from . import shamir
from .key_agreement import Expansion, expand

MAX_CHOICES: Final = 2000
"""Sets of t answers tried for one dealer before its seeds are given up."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Dispute:
    """``answerer`` gave a share of ``dealer``'s seed that does not fit: one of the two is at fault."""

    dealer: str
    answerer: str


class SeedError(FederationError):
    """No choice of answers gives a dealer's seeds; the round ends. ``dealer`` names it."""

    def __init__(self, dealer: str, answers: int) -> None:
        super().__init__(
            f"the seeds of {dealer} cannot be rebuilt from {answers} answers",
            hint=f"{dealer} or one of those that answered gave wrong shares; try a later round without it",
        )
        self.dealer = dealer


def rebuild(
    answers: Mapping[str, Bytes],
    points: Mapping[str, int],
    check_values: Mapping[str, Sequence[bytes]],
    threshold: int,
) -> tuple[dict[str, list[Expansion]], list[Dispute]]:
    """The expanded seeds of every dealer.

    Args:
        answers: site -> (dealers, s, 32) shares, dealers in the order of ``check_values``.
        points: site -> the point its shares were taken at.
        check_values: dealer -> its s check values.
        threshold: answers needed.

    Returns:
        dealer -> its s expansions; and the disputes seen on the way.

    Raises:
        SeedError: a dealer's seeds do not come out right under any choice tried.
    """
    names = sorted(answers, key=lambda name: points[name])
    first = names[:threshold]
    seeds = shamir.interpolate(np.stack([answers[name] for name in first]), [points[name] for name in first])
    result: dict[str, list[Expansion]] = {}
    disputes: list[Dispute] = []
    for place, (dealer, expected) in enumerate(check_values.items()):
        expansions = _matching(seeds[place], expected)
        if expansions is None:
            shares = {name: answers[name][place] for name in names}
            expansions, wrong = _search(dealer, shares, points, expected, threshold)
            disputes += [Dispute(dealer, name) for name in wrong]
        result[dealer] = expansions
    return result, disputes


def _matching(seeds: Bytes, expected: Sequence[bytes]) -> list[Expansion] | None:
    expansions = [expand(seed.tobytes()) for seed in seeds]
    good = all(found.check_value == bytes(value) for found, value in zip(expansions, expected, strict=True))
    return expansions if good else None


def _search(
    dealer: str,
    shares: Mapping[str, Bytes],
    points: Mapping[str, int],
    expected: Sequence[bytes],
    threshold: int,
) -> tuple[list[Expansion], list[str]]:
    choices = itertools.combinations(shares, threshold)
    for chosen in itertools.islice(choices, MAX_CHOICES):
        stacked, at = np.stack([shares[name] for name in chosen]), [points[name] for name in chosen]
        expansions = _matching(shamir.interpolate(stacked, at), expected)
        if expansions is not None:
            wrong = [
                name
                for name in shares
                if not np.array_equal(shamir.interpolate(stacked, at, points[name]), shares[name])
            ]
            return expansions, wrong
    raise SeedError(dealer, len(shares))
