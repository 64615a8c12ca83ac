"""Signed survivor sets: what a site answered for, so that two stories about one round can be proven.

A site signs (T, round, attempt, P, U) with its identity key when it answers, or, in runs with
confirm-survivors, before. The server hands the statements of a round to all sites with the next
request. Two valid ones on the same round and attempt with different sets P or U can only come from a
server that told sites different things.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from instahide.errors import IntegrityError, InvalidInputError, RefusedError

from .key_agreement import Position
from .roster import SIGNATURE_BYTES, Roster, SiteIdentity
from .statements import statement

_NUMBER_BYTES: Final = 8


class ContradictionError(IntegrityError):
    """The server told two sites different things about one round; the session is over for who sees it."""


@dataclass(frozen=True)
class SurvivorStatement:
    """``site`` answered for ``survivors`` at ``position``."""

    site: str
    position: Position
    survivors: bytes
    signature: bytes

    @classmethod
    def sign(
        cls, identity: SiteIdentity, transcript: bytes, position: Position, survivors: bytes
    ) -> SurvivorStatement:
        """The statement of ``identity``."""
        signature = identity.signing_key.sign(_signed(transcript, position, survivors))
        return cls(identity.name, position, survivors, signature)

    def verify(self, roster: Roster, transcript: bytes) -> None:
        """Return quietly if the signature is the site's; else IntegrityError."""
        roster.verify(self.site, self.signature, _signed(transcript, self.position, self.survivors))

    def to_bytes(self, roster: Roster) -> bytes:
        """index u8 | round u64 | attempt u64 | P | U | signature."""
        numbers = (self.position.server_round, self.position.attempt)
        return b"".join(
            [
                bytes([roster.index(self.site)]),
                *(number.to_bytes(_NUMBER_BYTES, "big") for number in numbers),
                self.position.participants,
                self.survivors,
                self.signature,
            ]
        )

    @classmethod
    def from_bytes(cls, roster: Roster, data: bytes) -> SurvivorStatement:
        """The inverse of :meth:`to_bytes`; InvalidInputError for a wrong length or index."""
        sets = 1 + 2 * _NUMBER_BYTES
        size = roster.set_bytes
        if len(data) != sets + 2 * size + SIGNATURE_BYTES or not 1 <= data[0] <= len(roster.names):
            raise InvalidInputError(
                "a signed survivor set has the wrong length or site", hint="both ends need the same roster"
            )
        server_round = int.from_bytes(data[1 : 1 + _NUMBER_BYTES], "big")
        attempt = int.from_bytes(data[1 + _NUMBER_BYTES : sets], "big")
        participants, survivors = bytes(data[sets : sets + size]), bytes(data[sets + size : sets + 2 * size])
        for bits in (participants, survivors):
            roster.from_bits(bits)
        position = Position(server_round, attempt, participants)
        return cls(roster.names[data[0] - 1], position, survivors, bytes(data[-SIGNATURE_BYTES:]))


def check_agreement(statements: Iterable[SurvivorStatement]) -> None:
    """ContradictionError if two verified statements tell one (round, attempt) differently."""
    told: dict[tuple[int, int], SurvivorStatement] = {}
    for each in statements:
        first = told.setdefault((each.position.server_round, each.position.attempt), each)
        if (first.position, first.survivors) != (each.position, each.survivors):
            raise ContradictionError(
                f"in round {each.position.server_round} the server told {first.site} and {each.site} "
                "different sets of survivors",
                hint="keep both signed statements as evidence and leave the run",
            )


def check_confirmed(
    statements: Sequence[SurvivorStatement], own: SurvivorStatement, *, threshold: int
) -> None:
    """Whether verified statements of ``threshold`` survivors are on the very sets that this site signed.

    Raises ContradictionError if one is on others, RefusedError if they are too few.
    """
    check_agreement([own, *statements])
    agreeing = {each.site for each in statements if each.position == own.position}
    if len(agreeing) < threshold:
        raise RefusedError(
            f"{len(agreeing)} sites confirmed the survivors",
            hint=f"this run asks for the signatures of {threshold} before a site gives shares",
        )


def _signed(transcript: bytes, position: Position, survivors: bytes) -> bytes:
    return statement("survivors", transcript, *position, survivors)
