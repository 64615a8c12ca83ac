"""The numbers all parties of a run agree on, and what they protect against.

    n  sites, 2..255          t  threshold: answers that open a sum, n/2 < t <= n
    d  entries in Z / 2^b     m  smallest set of sites whose sum is opened, t <= m <= n
    q  channels in Z / 2^64   c  sites that may collude with the server

A malicious server may tell every site another set of survivors. Let h = n - c be the honest sites and
a = t - c the honest answers it needs for a seed. If a > h / 2, that is

    c <= 2 t - n - 1,

at most one sum comes out of a round, whatever it tells whom. That sum is over at least

    h - floor(h (n - m) / a)    honest sites, or    m - c    if the sites confirm one set first,

of which there must be two. The default t = m = floor(2 n / 3) + 1 bears up to n - t sites lost in a
round and about n / 3 colluding. ``PROTOCOL.md``, "Threat model", has the argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from instahide.errors import InvalidInputError

from .statements import statement_hash

MAX_SITES: Final = 255
"""Shares are points of a polynomial over GF(2^8) at 1..255."""
RING_BITS: Final = (16, 32, 64)
MAX_VECTOR_LENGTH: Final = 2**31
MAX_CHANNELS: Final = 1024


@dataclass(frozen=True, kw_only=True)
class AggregationParameters:
    """What a vector looks like and how many sites it takes to open a sum.

    Raises InvalidInputError at construction, naming the value that does not fit.
    """

    num_sites: int
    threshold: int
    minimum_sites: int
    vector_length: int
    num_channels: int
    ring_bits: int = 32
    confirm_survivors: bool = False
    """Sites sign the survivors, and see the signatures of t, before any gives shares: a third cycle."""

    def __post_init__(self) -> None:
        _whole("number of sites", self.num_sites, 2, MAX_SITES)
        _whole("reconstruction-threshold", self.threshold, 2, self.num_sites)
        _whole("minimum-sites", self.minimum_sites, self.threshold, self.num_sites)
        _whole("vector length", self.vector_length, 1, MAX_VECTOR_LENGTH)
        _whole("number of channels", self.num_channels, 0, MAX_CHANNELS)
        if self.ring_bits not in RING_BITS or isinstance(self.ring_bits, bool):
            raise InvalidInputError(f"ring-bits is {self.ring_bits!r:.50}", hint="16, 32 or 64")
        if not isinstance(self.confirm_survivors, bool):
            raise InvalidInputError(
                f"confirm-survivors is {self.confirm_survivors!r:.50}", hint="true or false"
            )
        if 2 * self.threshold <= self.num_sites:
            raise InvalidInputError(
                f"threshold {self.threshold} of {self.num_sites} sites is no majority",
                hint=f"at least {self.num_sites // 2 + 1}: else two sets of survivors could both be opened",
            )

    @classmethod
    def for_sites(
        cls,
        num_sites: int,
        *,
        vector_length: int,
        num_channels: int,
        ring_bits: int = 32,
        threshold: int | None = None,
        minimum_sites: int | None = None,
        confirm_survivors: bool = False,
    ) -> Self:
        """Parameters with the default threshold, floor(2n/3) + 1, and minimum-sites equal to it."""
        _whole("number of sites", num_sites, 2, MAX_SITES)
        threshold = default_threshold(num_sites) if threshold is None else threshold
        return cls(
            num_sites=num_sites,
            threshold=threshold,
            minimum_sites=threshold if minimum_sites is None else minimum_sites,
            vector_length=vector_length,
            num_channels=num_channels,
            ring_bits=ring_bits,
            confirm_survivors=confirm_survivors,
        )

    @property
    def max_colluding_sites(self) -> int:
        """Sites that may collude with a malicious server without opening any honest site's vector.

        For a round in which all n sites take part; 0 also for n = 2, where each subtracts its own.
        """
        return max(0, min(2 * self.threshold - self.num_sites - 1, self.threshold - 2))

    def fewest_honest_sites(self, num_colluding: int = 0) -> int:
        """Honest sites that are at least in any sum a malicious server with colluding sites can open.

        0 if it can open more than one sum of a round. Noise that sites add must suffice from this many.
        """
        honest, needed = self.num_sites - num_colluding, self.threshold - num_colluding
        if 2 * needed <= honest:
            return 0
        if self.confirm_survivors:
            return self.minimum_sites - num_colluding
        return honest - honest * (self.num_sites - self.minimum_sites) // needed

    @property
    def max_dropouts(self) -> int:
        """Sites that may be lost in a round that still ends with a sum."""
        return self.num_sites - self.minimum_sites

    @property
    def vector_bytes(self) -> int:
        """Bytes of one masked vector."""
        return self.vector_length * self.ring_bits // 8

    def digest(self) -> bytes:
        """SHA-256 over all seven; part of the roster's hash."""
        numbers = (self.num_sites, self.threshold, self.minimum_sites)
        shape = (self.vector_length, self.num_channels, self.ring_bits)
        return statement_hash("parameters", *numbers, *shape, int(self.confirm_survivors))


def default_threshold(num_sites: int) -> int:
    """floor(2n/3) + 1, never above n."""
    return min(num_sites, 2 * num_sites // 3 + 1)


def _whole(what: str, value: int, smallest: int, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise InvalidInputError(
            f"the {what} is {value!r:.50}", hint=f"a whole number from {smallest} to {largest:,}"
        )
