"""The server's side of a session, as a state machine: it adds, and opens nothing but the sum.

::

    session = ServerSession(roster, test_vector_sha256)
    session.request()                        -> every site
    session.add_advert(advert)               <- each site
    session.start_round(round, attempt)      -> the participants; the same message for all
    session.add_report(report)               <- each site, added to the sum as it arrives
    session.close_reports()                  -> one message for each survivor
    session.add_answer(answer)               <- each survivor
    session.finish()                         the exact sum over the survivors, in the ring

Deadlines are the caller's: it decides when to stop waiting and calls the next step, which raises
:class:`RoundAbortedError` if too few have come. A message that must not be used raises
InvalidInputError or IntegrityError and changes nothing; its sender then counts as missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instahide.errors import FederationError, InvalidInputError, RefusedError

from .key_agreement import (
    SEED_BYTES,
    SESSION_ID_BYTES,
    Expansion,
    Position,
    advert_statement,
    transcript_hash,
)
from .messages import Advert, Report, ReportRequest, SessionRequest, UnmaskAnswer, UnmaskRequest
from .pairwise_masks import CHANNEL_STREAM, VECTOR_STREAM, Mask, add_masks, from_wire
from .roster import Roster
from .sealing import OVERHEAD_BYTES
from .seeds import Dispute, rebuild
from .survivors import SurvivorStatement


class RoundAbortedError(FederationError):
    """The attempt ends and nothing is opened. ``sites`` are those that were missed, or that disagree."""

    def __init__(self, what: str, sites: Iterable[str], *, hint: str) -> None:
        self.sites = tuple(sites)
        super().__init__(what + (f" ({', '.join(self.sites)})" if self.sites else ""), hint=hint)


@dataclass(frozen=True)
class AggregateSum:
    """What a round gives.

    ``vector`` (d,) is Σ x_i modulo 2^b over ``survivors``, ``channels`` (q,) the same modulo 2^64.
    """

    server_round: int
    attempt: int
    survivors: tuple[str, ...]
    vector: NDArray[Any] = field(repr=False)
    channels: NDArray[np.uint64] = field(repr=False)
    disputes: tuple[Dispute, ...] = ()


@dataclass(frozen=True)
class _Dealt:
    """What is kept of a report once its vector is in the sum."""

    packages: tuple[bytes, ...] = field(repr=False)
    check_values: bytes = field(repr=False)


@dataclass
class _Round:
    position: Position
    participants: tuple[str, ...]
    vector: NDArray[Any]
    channels: NDArray[np.uint64]
    dealt: dict[str, _Dealt] = field(default_factory=dict)
    survivors: tuple[str, ...] = ()
    answers: dict[str, UnmaskAnswer] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in self.participants if name not in self.survivors)

    def check_value(self, dealer: str, about: str) -> bytes:
        """What ``dealer`` reported of the seed it shares with ``about``, or of its own self-mask seed."""
        start = SEED_BYTES * self.participants.index(about)
        return self.dealt[dealer].check_values[start : start + SEED_BYTES]


class ServerSession:
    """One session of the server.

    Args:
        roster: the run's; its hash goes to every site.
        test_vector_sha256: digest of the test vector (``quantisation.check_test_vector``).
        session_id: 16 bytes; drawn if not given.
    """

    def __init__(self, roster: Roster, test_vector_sha256: bytes, *, session_id: bytes | None = None) -> None:
        self._roster, self._test_vector = roster, test_vector_sha256
        self._session_id = os.urandom(SESSION_ID_BYTES) if session_id is None else session_id
        self._adverts: dict[str, Advert] = {}
        self._shown: set[str] = set()
        self._transcript = b""
        self._round: _Round | None = None
        self._last = (0, 0)
        self._statements: list[SurvivorStatement] = []

    @property
    def cohort(self) -> tuple[str, ...]:
        """Sites whose adverts have come, in roster order."""
        return self._roster.sort(self._adverts)

    def request(self) -> SessionRequest:
        """The message that opens the session at every site."""
        return SessionRequest(
            session_id=self._session_id,
            roster_sha256=self._roster.digest,
            test_vector_sha256=self._test_vector,
        )

    def add_advert(self, advert: Advert) -> None:
        """Take a site's advert. Raises for another session, a second advert, a late or a forged one."""
        self._check_session(advert.session_id)
        if self._transcript:
            raise InvalidInputError(
                f"the advert of {advert.site} came after the first round began", hint="begin a new session"
            )
        if advert.site in self._adverts:
            raise InvalidInputError(f"{advert.site} sent a second advert", hint="begin a new session")
        signed = advert_statement(self._roster, self._session_id, advert.site, advert.public_key)
        self._roster.verify(advert.site, advert.signature, signed)
        self._adverts[advert.site] = advert

    def start_round(
        self, server_round: int, attempt: int = 1, *, participants: Iterable[str] | None = None
    ) -> ReportRequest:
        """Begin an attempt; the cohort is fixed from the first one on. ``participants``: all by default.

        Raises:
            RoundAbortedError: fewer participants than minimum-sites.
            InvalidInputError: a participant without an advert.
            RefusedError: a round or attempt that is not later than the last.
        """
        cohort = self.cohort
        asked = cohort if participants is None else self._roster.sort(participants)
        if not set(asked) <= set(cohort):
            raise InvalidInputError("a participant sent no advert", hint="begin a new session to add sites")
        self._check_enough(asked, self._roster.names, "too few sites for a round")
        if (server_round, attempt) <= self._last:
            raise RefusedError(
                f"round {server_round}, attempt {attempt} is not later than {self._last}", hint="count up"
            )
        if not self._transcript:
            keys = {name: self._adverts[name].public_key for name in cohort}
            self._transcript = transcript_hash(self._roster, self._session_id, keys)
        bits = self._roster.to_bits(asked)
        parameters = self._roster.parameters
        self._last = (server_round, attempt)
        self._round = _Round(
            Position(server_round, attempt, bits),
            asked,
            np.zeros(parameters.vector_length, dtype=f"u{parameters.ring_bits // 8}"),
            np.zeros(parameters.num_channels, dtype=np.uint64),
        )
        known = set(asked) <= self._shown
        return ReportRequest(
            session_id=self._session_id,
            server_round=server_round,
            attempt=attempt,
            participants=bits,
            cohort=b"" if known else self._roster.to_bits(cohort),
            adverts=b"" if known else self._advert_list(),
            statements=tuple(each.to_bytes(self._roster) for each in self._statements),
        )

    def add_report(self, report: Report) -> None:
        """Add a site's masked vector to the sum and keep its packages."""
        current = self._current()
        self._check_message(report, current)
        count, parameters = len(current.participants), self._roster.parameters
        package = OVERHEAD_BYTES + SEED_BYTES * count
        fits = (
            report.participants == current.position.participants
            and memoryview(report.vector).nbytes == parameters.vector_bytes
            and memoryview(report.channels).nbytes == 8 * parameters.num_channels
            and len(report.check_values) == SEED_BYTES * count
            and len(report.packages) == count - 1
            and all(len(each) == package for each in report.packages)
        )
        if current.survivors or report.site in current.dealt or not fits:
            why = "is late" if current.survivors else "came twice or has parts of the wrong length"
            raise InvalidInputError(f"the report of {report.site} {why}", hint="it counts as missing")
        current.vector += from_wire(report.vector, parameters.ring_bits)
        current.channels += from_wire(report.channels, 64)
        current.dealt[report.site] = _Dealt(report.packages, report.check_values)
        self._shown.add(report.site)

    def close_reports(self) -> dict[str, UnmaskRequest]:
        """Fix the survivors; the message for each of them.

        Raises:
            RoundAbortedError: fewer reports than minimum-sites. No share was asked for.
            FederationError: two sites report different values for the seed they share.
        """
        current = self._current()
        if current.survivors:
            raise RefusedError("the survivors of this attempt are fixed", hint="a site answers one set only")
        survivors = self._roster.sort(current.dealt)
        self._check_enough(survivors, current.participants, "too few reports")
        self._check_pairs(current, survivors)
        current.survivors, self._statements = survivors, []
        bits = self._roster.to_bits(survivors)
        return {
            name: UnmaskRequest(
                session_id=self._session_id,
                server_round=current.position.server_round,
                attempt=current.position.attempt,
                survivors=bits,
                packages=_packages_for(current, name),
            )
            for name in survivors
        }

    def add_answer(self, answer: UnmaskAnswer) -> None:
        """Keep a survivor's shares, if its signature is on the set of survivors that was asked about."""
        current = self._current()
        self._check_message(answer, current)
        size = SEED_BYTES * len(current.survivors) * (1 + len(current.missing))
        fits = answer.survivors == self._roster.to_bits(current.survivors)
        fits = fits and answer.site in current.survivors and len(answer.shares) == size
        if answer.site in current.answers or not fits:
            raise InvalidInputError(
                f"the answer of {answer.site} came twice, or is not about this round's survivors",
                hint="it counts as missing",
            )
        statement = SurvivorStatement(answer.site, current.position, answer.survivors, answer.signature)
        statement.verify(self._roster, self._transcript)
        current.answers[answer.site] = answer
        self._statements.append(statement)

    def finish(self) -> AggregateSum:
        """Rebuild the seeds, take the masks off, return the sum; the attempt is over.

        Raises:
            RoundAbortedError: fewer answers than the threshold.
            SeedError: wrong shares, and no choice of answers gives the right seeds.
        """
        current, threshold = self._current(), self._roster.parameters.threshold
        if not current.survivors:
            raise RefusedError(
                "the survivors of this attempt are not fixed", hint="close_reports comes first"
            )
        if len(current.answers) < threshold:
            raise RoundAbortedError(
                f"{len(current.answers)} answers of {threshold} needed; missing",
                (name for name in current.survivors if name not in current.answers),
                hint="sites that answered have given their shares: go on to a later round",
            )
        expansions, disputes = self._rebuild(current, threshold)
        masks = _left_over(current, expansions)
        add_masks(current.vector, masks, stream=VECTOR_STREAM)
        add_masks(current.channels, masks, stream=CHANNEL_STREAM)
        self._round = None
        return AggregateSum(
            current.position.server_round,
            current.position.attempt,
            current.survivors,
            current.vector,
            current.channels,
            tuple(disputes),
        )

    def _rebuild(self, current: _Round, threshold: int) -> tuple[dict[str, list[Expansion]], list[Dispute]]:
        shape = (len(current.survivors), 1 + len(current.missing), SEED_BYTES)
        shares = {
            name: np.frombuffer(answer.shares, dtype=np.uint8).reshape(shape)
            for name, answer in current.answers.items()
        }
        points = {name: self._roster.index(name) for name in shares}
        checks = {
            name: [current.check_value(name, name), *(current.check_value(name, j) for j in current.missing)]
            for name in current.survivors
        }
        return rebuild(shares, points, checks, threshold)

    def _check_pairs(self, current: _Round, survivors: tuple[str, ...]) -> None:
        for place, one in enumerate(survivors):
            for other in survivors[:place]:
                if current.check_value(one, other) != current.check_value(other, one):
                    raise RoundAbortedError(
                        f"{other} and {one} do not agree on the seed they share; masks would not cancel",
                        (other, one),
                        hint="one of them is broken or dishonest; begin a new session, if need be without it",
                    )

    def _check_enough(self, present: tuple[str, ...], wanted: tuple[str, ...], what: str) -> None:
        least = self._roster.parameters.minimum_sites
        if len(present) < least:
            absent = (name for name in wanted if name not in present)
            raise RoundAbortedError(
                f"{what}, {len(present)} of {least} needed; missing",
                absent,
                hint="nothing was opened; try again",
            )

    def _check_message(self, message: Report | UnmaskAnswer, current: _Round) -> None:
        self._check_session(message.session_id)
        if message.site not in current.participants:
            raise InvalidInputError(f"{message.site!r:.100} was not asked", hint="it is ignored")
        if (message.server_round, message.attempt) != current.position[:2]:
            raise InvalidInputError(
                f"{message.site} answers round {message.server_round}, attempt {message.attempt}",
                hint=f"asked were round {current.position.server_round}, attempt {current.position.attempt}",
            )

    def _check_session(self, session_id: bytes) -> None:
        if session_id != self._session_id:
            raise InvalidInputError("the message belongs to another session", hint="it is ignored")

    def _current(self) -> _Round:
        if self._round is None:
            raise RefusedError("no round is under way", hint="start_round comes first")
        return self._round

    def _advert_list(self) -> bytes:
        adverts = [self._adverts[name] for name in self.cohort]
        return b"".join(part for each in adverts for part in (each.public_key, each.signature))


def _packages_for(current: _Round, recipient: str) -> tuple[bytes, ...]:
    """The package of every other survivor for ``recipient``; a dealer's list leaves its own place out."""
    places = {name: place for place, name in enumerate(current.participants)}
    place = places[recipient]
    return tuple(
        current.dealt[dealer].packages[place - (places[dealer] < place)]
        for dealer in current.survivors
        if dealer != recipient
    )


def _left_over(current: _Round, expansions: dict[str, list[Expansion]]) -> list[Mask]:
    """The masks that did not cancel, with the sign that takes them off: every self mask of a survivor,
    and its pairwise mask with every missing site."""
    masks: list[Mask] = []
    for name in current.survivors:
        own, *pairwise = expansions[name]
        masks.append((own.stream_key, -1))
        for other, expansion in zip(current.missing, pairwise, strict=True):
            masks.append((expansion.stream_key, -1 if other > name else 1))
    return masks
