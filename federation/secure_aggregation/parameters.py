"""The numbers all parties of a run agree on, and what they protect against.

    n  sites, 2..255          t  threshold: answers that open a sum, n/2 < t <= n
    d  entries in Z / 2^b     m  smallest set of sites whose sum is opened, t <= m <= n
    q  channels in Z / 2^64   c  sites that may collude with the server

A server that shows two sets of survivors to two groups of sites opens a single vector only if
each set gets t answers. Honest sites answer one set, colluding ones both, hence it cannot if

    (n - c) + 2 c < 2 t,  that is  c <= 2 t - n - 1;     and c <= t - 2 leaves two honest survivors.

The default t = floor(2 n / 3) + 1 bears up to n - t sites lost in a round and about n / 3 colluding.
``PROTOCOL.md``, "Threat model", has the argument.
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

    def __post_init__(self) -> None:
        _whole("number of sites", self.num_sites, 2, MAX_SITES)
        _whole("threshold", self.threshold, 2, self.num_sites)
        _whole("minimum-sites", self.minimum_sites, self.threshold, self.num_sites)
        _whole("vector length", self.vector_length, 1, MAX_VECTOR_LENGTH)
        _whole("number of channels", self.num_channels, 0, MAX_CHANNELS)
        if self.ring_bits not in RING_BITS or isinstance(self.ring_bits, bool):
            raise InvalidInputError(f"ring-bits is {self.ring_bits!r:.50}", hint="16, 32 or 64")
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
        )

    @property
    def max_colluding_sites(self) -> int:
        """Sites that may collude with a malicious server without opening any honest site's vector.

        For a round in which all n sites take part; 0 also for n = 2, where each subtracts its own.
        """
        return max(0, min(2 * self.threshold - self.num_sites - 1, self.threshold - 2))

    @property
    def max_dropouts(self) -> int:
        """Sites that may be lost in a round that still ends with a sum."""
        return self.num_sites - self.minimum_sites

    @property
    def vector_bytes(self) -> int:
        """Bytes of one masked vector."""
        return self.vector_length * self.ring_bits // 8

    def digest(self) -> bytes:
        """SHA-256 over all six numbers; part of the roster's hash."""
        numbers = (self.num_sites, self.threshold, self.minimum_sites)
        return statement_hash("parameters", *numbers, self.vector_length, self.num_channels, self.ring_bits)


def default_threshold(num_sites: int) -> int:
    """floor(2n/3) + 1, never above n."""
    return min(num_sites, 2 * num_sites // 3 + 1)


def _whole(what: str, value: int, smallest: int, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise InvalidInputError(
            f"the {what} is {value!r:.50}", hint=f"a whole number from {smallest} to {largest:,}"
        )
