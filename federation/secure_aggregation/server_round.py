"""What the server holds of one attempt: the running sum, and of each report what unmasking needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instahide.errors import FederationError

from .key_agreement import SEED_BYTES, Expansion, Position
from .messages import UnmaskAnswer
from .pairwise_masks import Mask
from .seeds import Dispute


class RoundAbortedError(FederationError):
    """The attempt ends and nothing is opened. ``sites`` are those that were missed, or that disagree."""

    def __init__(self, what: str, sites: Iterable[str], *, hint: str) -> None:
        self.sites = tuple(sites)
        super().__init__(what + (f" ({', '.join(self.sites)})" if self.sites else ""), hint=hint)


@dataclass(frozen=True)
class AggregateSum:
    """What a round gives.

    ``vector`` (d,) is Σ x_i modulo 2^b over ``survivors``, ``channels`` (q,) the same modulo 2^64.
    ``disputes`` are wrong shares that were passed over.
    """

    server_round: int
    attempt: int
    survivors: tuple[str, ...]
    vector: NDArray[Any] = field(repr=False)
    channels: NDArray[np.uint64] = field(repr=False)
    disputes: tuple[Dispute, ...] = ()


@dataclass(frozen=True)
class Dealt:
    """What is kept of a report once its vector is in the sum."""

    packages: tuple[bytes, ...] = field(repr=False)
    check_values: bytes = field(repr=False)


@dataclass
class Round:
    """One attempt. ``survivors`` is empty until the reports are closed; all sets are in roster order."""

    position: Position
    participants: tuple[str, ...]
    vector: NDArray[Any]
    channels: NDArray[np.uint64]
    dealt: dict[str, Dealt] = field(default_factory=dict)
    survivors: tuple[str, ...] = ()
    answers: dict[str, UnmaskAnswer] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """Participants that are no survivors."""
        return tuple(name for name in self.participants if name not in self.survivors)

    def check_value(self, dealer: str, about: str) -> bytes:
        """What ``dealer`` reported of the seed it shares with ``about``, or of its own self-mask seed."""
        start = SEED_BYTES * self.participants.index(about)
        return self.dealt[dealer].check_values[start : start + SEED_BYTES]

    def check_pairs(self, survivors: tuple[str, ...]) -> None:
        """RoundAbortedError if two survivors reported different values for the seed they share."""
        for place, one in enumerate(survivors):
            for other in survivors[:place]:
                if self.check_value(one, other) != self.check_value(other, one):
                    raise RoundAbortedError(
                        f"{other} and {one} do not agree on the seed they share; masks would not cancel",
                        (other, one),
                        hint="one of them is broken or dishonest; begin a new session, if need be without it",
                    )

    def packages_for(self, recipient: str) -> tuple[bytes, ...]:
        """The package of every other survivor for ``recipient``; a dealer's list leaves its own place out."""
        places = {name: place for place, name in enumerate(self.participants)}
        place = places[recipient]
        return tuple(
            self.dealt[dealer].packages[place - (places[dealer] < place)]
            for dealer in self.survivors
            if dealer != recipient
        )

    def left_over(self, expansions: dict[str, list[Expansion]]) -> list[Mask]:
        """The masks that did not cancel, with the sign that takes them off.

        Every survivor's self mask, and its pairwise mask with every missing site.
        """
        masks: list[Mask] = []
        for name in self.survivors:
            own, *pairwise = expansions[name]
            masks.append((own.stream_key, -1))
            for other, expansion in zip(self.missing, pairwise, strict=True):
                masks.append((expansion.stream_key, -1 if other > name else 1))
        return masks
