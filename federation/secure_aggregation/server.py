"""The server's side of a session, as a state machine: it adds, and opens nothing but the sum.

::

    session = ServerSession(roster, test_vector_sha256)
    session.request()                        -> every site
    session.add_advert(advert)               <- each site
    session.start_round(round, attempt)      -> the participants; the same message for all
    session.add_report(report)               <- each site, added to the sum as it arrives
    session.close_reports()                  the survivors are fixed
    session.confirm_request()                -> every survivor; only with confirm-survivors
    session.add_confirmation(confirmation)   <- each survivor
    session.unmask_requests()                -> one message for each survivor
    session.add_answer(answer)               <- each survivor
    session.finish()                         the exact sum over the survivors, in the ring

Deadlines are the caller's: it decides when to stop waiting and calls the next step, which raises
:class:`RoundAbortedError` if too few have come. A message that must not be used raises
InvalidInputError or IntegrityError and changes nothing; its sender then counts as missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from instahide.errors import InvalidInputError, RefusedError

from .key_agreement import (
    SEED_BYTES,
    SESSION_ID_BYTES,
    Expansion,
    Position,
    advert_statement,
    transcript_hash,
)
from .messages import (
    Advert,
    Confirmation,
    ConfirmRequest,
    Report,
    ReportRequest,
    SessionRequest,
    UnmaskAnswer,
    UnmaskRequest,
)
from .pairwise_masks import CHANNEL_STREAM, VECTOR_STREAM, add_masks, from_wire
from .roster import Roster
from .sealing import OVERHEAD_BYTES
from .seeds import Dispute, rebuild
from .server_round import AggregateSum, Dealt, Round, RoundAbortedError
from .survivors import SurvivorStatement


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
        self._round: Round | None = None
        self._last = (0, 0)
        self._statements: dict[str, SurvivorStatement] = {}

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
        self._round = Round(
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
            statements=tuple(each.to_bytes(self._roster) for each in self._statements.values()),
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
        current.dealt[report.site] = Dealt(report.packages, report.check_values)
        self._shown.add(report.site)

    def close_reports(self) -> tuple[str, ...]:
        """Fix and return the survivors: the sites whose reports have come.

        Raises:
            RoundAbortedError: fewer reports than minimum-sites, or two sites report different values for
                the seed they share. No share was asked for.
        """
        current = self._current()
        if current.survivors:
            raise RefusedError("the survivors of this attempt are fixed", hint="a site answers one set only")
        survivors = self._roster.sort(current.dealt)
        self._check_enough(survivors, current.participants, "too few reports")
        current.check_pairs(survivors)
        current.survivors, self._statements = survivors, {}
        return survivors

    def confirm_request(self) -> ConfirmRequest:
        """The message that tells every survivor who survived."""
        current = self._closed()
        return ConfirmRequest(
            session_id=self._session_id,
            server_round=current.position.server_round,
            attempt=current.position.attempt,
            survivors=self._roster.to_bits(current.survivors),
        )

    def add_confirmation(self, confirmation: Confirmation) -> None:
        """Keep a survivor's signature on the set of survivors."""
        self._keep_statement(confirmation, self._closed())

    def unmask_requests(self) -> dict[str, UnmaskRequest]:
        """The message for each survivor that may give shares (with confirm-survivors: that confirmed).

        Raises RoundAbortedError for fewer confirmations than the threshold. No share was asked for.
        """
        current = self._closed()
        names = current.survivors
        statements: tuple[bytes, ...] = ()
        if self._roster.parameters.confirm_survivors:
            names = self._roster.sort(self._statements)
            self._check_threshold(names, current, "confirmations")
            statements = tuple(self._statements[name].to_bytes(self._roster) for name in names)
        return {
            name: UnmaskRequest(
                session_id=self._session_id,
                server_round=current.position.server_round,
                attempt=current.position.attempt,
                survivors=self._roster.to_bits(current.survivors),
                packages=current.packages_for(name),
                confirmations=statements,
            )
            for name in names
        }

    def add_answer(self, answer: UnmaskAnswer) -> None:
        """Keep a survivor's shares, if its signature is on the set of survivors that was asked about."""
        current = self._closed()
        size = SEED_BYTES * len(current.survivors) * (1 + len(current.missing))
        if answer.site in current.answers or len(answer.shares) != size:
            raise InvalidInputError(
                f"the answer of {answer.site} came twice or has a wrong length", hint="it counts as missing"
            )
        self._keep_statement(answer, current)
        current.answers[answer.site] = answer

    def finish(self) -> AggregateSum:
        """Rebuild the seeds, take the masks off, return the sum; the attempt is over.

        Raises:
            RoundAbortedError: fewer answers than the threshold.
            SeedError: wrong shares, and no choice of answers gives the right seeds.
        """
        current = self._closed()
        self._check_threshold(tuple(current.answers), current, "answers")
        expansions, disputes = self._rebuild(current, self._roster.parameters.threshold)
        masks = current.left_over(expansions)
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

    def _rebuild(self, current: Round, threshold: int) -> tuple[dict[str, list[Expansion]], list[Dispute]]:
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

    def _keep_statement(self, message: Confirmation | UnmaskAnswer, current: Round) -> None:
        self._check_message(message, current)
        if message.site not in current.survivors or message.survivors != self._roster.to_bits(
            current.survivors
        ):
            raise InvalidInputError(
                f"{message.site} does not speak of this round's survivors", hint="it counts as missing"
            )
        statement = SurvivorStatement(message.site, current.position, message.survivors, message.signature)
        statement.verify(self._roster, self._transcript)
        self._statements[message.site] = statement

    def _check_threshold(self, present: tuple[str, ...], current: Round, what: str) -> None:
        threshold = self._roster.parameters.threshold
        if len(present) < threshold:
            raise RoundAbortedError(
                f"{len(present)} {what} of {threshold} needed; missing",
                (name for name in current.survivors if name not in present),
                hint="sites that gave shares serve no other attempt: go on to a later round",
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

    def _check_message(self, message: Report | Confirmation | UnmaskAnswer, current: Round) -> None:
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

    def _current(self) -> Round:
        if self._round is None:
            raise RefusedError("no round is under way", hint="start_round comes first")
        return self._round

    def _closed(self) -> Round:
        current = self._current()
        if not current.survivors:
            raise RefusedError(
                "the survivors of this attempt are not fixed", hint="close_reports comes first"
            )
        return current

    def _advert_list(self) -> bytes:
        adverts = [self._adverts[name] for name in self.cohort]
        return b"".join(part for each in adverts for part in (each.public_key, each.signature))
