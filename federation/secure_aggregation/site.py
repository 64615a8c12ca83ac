"""A site's side of a session, as a state machine: adverts, masked reports, shares. No I/O, no clock.

::

    session = SiteSession(roster, identity, request)      fresh X25519 key, in memory only
    session.advert()                                      -> server
    session.accept(report_request)                        before training: is this request acceptable?
    session.report(report_request, vector, channels)      -> server, masked
    session.confirm(confirm_request)                      -> server, only with confirm-survivors
    session.unmask(unmask_request)                        -> server, shares; once a round

What makes a site safe from the server is refused here: a request out of order, a second vector for
one attempt, a set of survivors that is too small or not its own, a second answer, a package that
does not open. A refusal leaves the session as it was and gives out no share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from instahide.errors import IntegrityError, InvalidInputError, RefusedError

from . import shamir
from .cohort import Cohort, check_size, open_cohort
from .key_agreement import KEY_BYTES, SEED_BYTES, Position, advert_statement, expand, pairwise_seed
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
from .pairwise_masks import CHANNEL_STREAM, VECTOR_STREAM, Mask, add_masks, ring_dtype, wire_bytes
from .roster import Roster, SiteIdentity
from .sealing import SALT_BYTES, open_package, seal
from .session_secrets import SessionSecrets
from .survivors import ContradictionError, SurvivorStatement, check_agreement, check_confirmed


@dataclass
class _OpenReport:
    """A report whose round may still be unmasked: who was asked, and this site's shares of its own seeds."""

    position: Position
    participants: tuple[str, ...]
    own_shares: NDArray[np.uint8] = field(repr=False)
    confirmed: SurvivorStatement | None = None


class SiteSession:
    """One session of one site.

    Args:
        roster: as approved by this site.
        identity: this site's name and signing key; the roster must list them.
        request: the server's session request.
        last_round: rounds up to this one are refused: the last ``spent_round`` of any session of this run.
        secrets: for known-answer tests only; the operating system's by default.

    Raises:
        InvalidInputError: the roster lists another key for this site.
        IntegrityError: the server has another roster.
    """

    def __init__(
        self,
        roster: Roster,
        identity: SiteIdentity,
        request: SessionRequest,
        *,
        last_round: int = 0,
        secrets: SessionSecrets | None = None,
    ) -> None:
        identity.check_listed(roster)
        if request.roster_sha256 != roster.digest:
            raise IntegrityError(
                "the server's roster is not the one this site approved",
                hint="compare run name, sites, keys, threshold and settings, and approve the roster again",
            )
        self._roster, self._identity = roster, identity
        self._session_id = request.session_id
        self._secrets = secrets or SessionSecrets()
        self._key = X25519PrivateKey.from_private_bytes(self._secrets.take(KEY_BYTES))
        self._cohort: Cohort | None = None
        self._shown = (b"", b"")
        self._last = (last_round, 0)
        self._spent_round = last_round
        self._open: _OpenReport | None = None
        self._statement: SurvivorStatement | None = None
        self._contradiction: str = ""

    @property
    def spent_round(self) -> int:
        """The last round this site gave shares for: to be kept, and given to the next session."""
        return self._spent_round

    def advert(self) -> Advert:
        """This session's public key, signed by the site's identity."""
        public_key = self._key.public_key().public_bytes_raw()
        signed = advert_statement(self._roster, self._session_id, self._identity.name, public_key)
        return Advert(
            session_id=self._session_id,
            site=self._identity.name,
            public_key=public_key,
            signature=self._identity.signing_key.sign(signed),
        )

    def open(self, cohort: bytes, adverts: bytes) -> None:
        """Check the adverts of the session's cohort and derive the keys; see :func:`open_cohort`.

        IntegrityError too if they differ from those this session was opened with.
        """
        if self._cohort is not None and self._shown == (cohort, adverts):
            return
        opened = open_cohort(self._roster, self._session_id, self._identity.name, self._key, cohort, adverts)
        if self._cohort is not None and self._cohort.transcript != opened.transcript:
            raise IntegrityError(
                "the adverts differ from those this session began with",
                hint="the server must begin a new session",
            )
        self._cohort, self._shown = opened, (cohort, adverts)

    def accept(self, request: ReportRequest) -> tuple[str, ...]:
        """Whether ``request`` may be answered, before the work of training; returns the participants.

        Raises:
            InvalidInputError: another session, a malformed set, or lengths that do not fit.
            IntegrityError: forged adverts or statements; ContradictionError ends the session.
            RefusedError: too few participants, this site not among them, a round or attempt that is
                not later than all before, or a round this site has already given its shares for.
        """
        self._check_session(request.session_id)
        if request.adverts or request.cohort:
            self.open(request.cohort, request.adverts)
        cohort = self._opened()
        statements = self._verified(request.statements)
        with self._leaving_at_a_contradiction():
            check_agreement([*([self._statement] if self._statement else []), *statements])
        participants = self._roster.from_bits(request.participants)
        check_size(self._roster, participants, "the round")
        if self._identity.name not in participants or not set(participants) <= set(cohort.names):
            raise RefusedError(
                "this site is not among the participants, or one of them is not in the session",
                hint="ask only sites whose adverts were sent",
            )
        if (request.server_round, request.attempt) <= self._last:
            raise RefusedError(
                f"round {request.server_round}, attempt {request.attempt} is not later than "
                f"round {self._last[0]}, attempt {self._last[1]}",
                hint="one vector is masked for one attempt; count up",
            )
        if request.server_round <= self._spent_round:
            raise RefusedError(
                f"round {request.server_round} is over for this site: shares were given",
                hint="go on to a later round: two sums of one round would give away their difference",
            )
        return participants

    def report(self, request: ReportRequest, vector: NDArray[Any], channels: NDArray[Any]) -> Report:
        """Mask ``vector`` (d,) of Z / 2^b and ``channels`` (q,) of Z / 2^64 for the participants.

        The arrays stay as they are. Raises as :meth:`accept`, and InvalidInputError for a shape or
        dtype that the parameters do not have.
        """
        participants = self.accept(request)
        parameters = self._roster.parameters
        masked = _ring_copy("vector", vector, parameters.vector_length, parameters.ring_bits)
        masked_channels = _ring_copy("channels", channels, parameters.num_channels, 64)
        position = Position(request.server_round, request.attempt, request.participants)
        self._last, self._open = position[:2], None  # whatever happens below, this attempt is used up
        seeds = self._seeds(position, participants)
        expansions = [expand(seed) for seed in seeds]
        masks = self._masks(participants, [each.stream_key for each in expansions])
        add_masks(masked, masks, stream=VECTOR_STREAM)
        add_masks(masked_channels, masks, stream=CHANNEL_STREAM)
        shares = self._share(participants, seeds)
        own = participants.index(self._identity.name)
        packages = self._seal(position, participants, shares)
        self._open = _OpenReport(position, participants, shares[own])
        return Report(
            session_id=self._session_id,
            site=self._identity.name,
            server_round=position.server_round,
            attempt=position.attempt,
            participants=position.participants,
            vector=wire_bytes(masked),
            channels=wire_bytes(masked_channels),
            packages=packages,
            check_values=b"".join(each.check_value for each in expansions),
        )

    def confirm(self, request: ConfirmRequest) -> Confirmation:
        """Sign the survivors of the round last reported in; one set for an attempt.

        Raises as :meth:`unmask`, and RefusedError for a second set or in a run that does not confirm.
        """
        report, _ = self._asked(request)
        if not self._roster.parameters.confirm_survivors:
            raise RefusedError("this run does not confirm survivors", hint="ask for the shares at once")
        if report.confirmed is not None and report.confirmed.survivors != request.survivors:
            raise RefusedError("this site has signed another set of survivors", hint="begin a new attempt")
        statement = self._sign(report, request.survivors)
        report.confirmed = self._statement = statement
        return Confirmation(
            session_id=self._session_id,
            site=self._identity.name,
            server_round=request.server_round,
            attempt=request.attempt,
            survivors=request.survivors,
            signature=statement.signature,
        )

    def unmask(self, request: UnmaskRequest) -> UnmaskAnswer:
        """This site's shares for the survivors of the round it last reported in. Once a round.

        Raises:
            InvalidInputError: another session, a malformed set or a wrong number of packages.
            RefusedError: no open report of that round and attempt; survivors that are too few, are
                not participants, or do not hold this site; too few confirmations.
            PackageError: a survivor's package does not open. Nothing was given out.
            ContradictionError: a site confirmed another set; this site leaves the session.
        """
        report, survivors = self._asked(request)
        self._check_confirmed(report, request)
        own = self._identity.name
        others = [name for name in survivors if name != own]
        if len(request.packages) != len(others):
            raise InvalidInputError("not one package for each other survivor", hint="in roster order")
        dealt = {own: report.own_shares}
        for name, package in zip(others, request.packages, strict=True):
            content = open_package(self._opened().keys[name], report.position, name, own, package)
            if len(content) != SEED_BYTES * len(report.participants):
                raise InvalidInputError(
                    f"the package from {name} has a wrong length", hint="nothing was given"
                )
            dealt[name] = np.frombuffer(content, dtype=np.uint8).reshape(-1, SEED_BYTES)
        self._open, self._spent_round = None, request.server_round
        self._statement = report.confirmed or self._sign(report, request.survivors)
        return UnmaskAnswer(
            session_id=self._session_id,
            site=own,
            server_round=request.server_round,
            attempt=request.attempt,
            survivors=request.survivors,
            shares=_selected(dealt, report.participants, survivors),
            signature=self._statement.signature,
        )

    def _asked(self, request: ConfirmRequest | UnmaskRequest) -> tuple[_OpenReport, tuple[str, ...]]:
        """The open report a request is about, and its survivors, if they are such as may be unmasked."""
        self._check_session(request.session_id)
        self._opened()
        report = self._open
        if report is None or report.position[:2] != (request.server_round, request.attempt):
            raise RefusedError(
                f"no open report of round {request.server_round}, attempt {request.attempt}",
                hint="shares are given once a round, for the report made last",
            )
        survivors = self._roster.from_bits(request.survivors)
        check_size(self._roster, survivors, "the set of survivors")
        if self._identity.name not in survivors or not set(survivors) <= set(report.participants):
            raise RefusedError(
                "the survivors do not hold this site, or hold one that was not asked",
                hint="the survivors are participants whose reports arrived",
            )
        return report, survivors

    def _check_confirmed(self, report: _OpenReport, request: UnmaskRequest) -> None:
        parameters = self._roster.parameters
        if not parameters.confirm_survivors:
            return
        if report.confirmed is None or report.confirmed.survivors != request.survivors:
            raise RefusedError("this site has not confirmed these survivors", hint="ask it to confirm first")
        statements = self._verified(request.confirmations)
        with self._leaving_at_a_contradiction():
            check_confirmed(statements, report.confirmed, threshold=parameters.threshold)

    def _sign(self, report: _OpenReport, survivors: bytes) -> SurvivorStatement:
        return SurvivorStatement.sign(self._identity, self._opened().transcript, report.position, survivors)

    def _seeds(self, position: Position, participants: tuple[str, ...]) -> list[bytes]:
        """For each participant the seed this site shares with it; in the own place a fresh self-mask seed."""
        keys = self._opened().keys
        self_seed = self._secrets.take(SEED_BYTES)
        return [pairwise_seed(keys[name], position) if name in keys else self_seed for name in participants]

    def _masks(self, participants: tuple[str, ...], stream_keys: list[bytes]) -> list[Mask]:
        own = participants.index(self._identity.name)
        return [(key, 1 if place >= own else -1) for place, key in enumerate(stream_keys)]

    def _share(self, participants: tuple[str, ...], seeds: list[bytes]) -> NDArray[np.uint8]:
        """(participants as recipients, participants as seeds, 32) shares."""
        secrets = np.frombuffer(b"".join(seeds), dtype=np.uint8).reshape(-1, SEED_BYTES)
        degree = self._roster.parameters.threshold - 1
        tape = self._secrets.take(degree * secrets.size)
        coefficients = np.frombuffer(tape, dtype=np.uint8).reshape(degree, *secrets.shape)
        return shamir.split(secrets, coefficients, [self._roster.index(name) for name in participants])

    def _seal(
        self, position: Position, participants: tuple[str, ...], shares: NDArray[np.uint8]
    ) -> tuple[bytes, ...]:
        keys, own = self._opened().keys, self._identity.name
        return tuple(
            seal(keys[peer], position, own, peer, share.tobytes(), salt=self._secrets.take(SALT_BYTES))
            for peer, share in zip(participants, shares, strict=True)
            if peer != own
        )

    def _opened(self) -> Cohort:
        if self._contradiction:
            raise ContradictionError(self._contradiction, hint="this site has left the session")
        if self._cohort is None:
            raise RefusedError(
                "this site has not seen the session's adverts", hint="send them with the first request"
            )
        return self._cohort

    def _check_session(self, session_id: bytes) -> None:
        if session_id != self._session_id:
            raise InvalidInputError(
                "the message belongs to another session", hint="a restarted site needs a new session"
            )

    def _verified(self, encoded: tuple[bytes, ...]) -> list[SurvivorStatement]:
        statements = [SurvivorStatement.from_bytes(self._roster, each) for each in encoded]
        for each in statements:
            each.verify(self._roster, self._opened().transcript)
        return statements

    @contextmanager
    def _leaving_at_a_contradiction(self) -> Iterator[None]:
        try:
            yield
        except ContradictionError as error:
            self._contradiction, self._open = error.message, None
            raise


def _ring_copy(what: str, array: NDArray[Any], length: int, ring_bits: int) -> NDArray[Any]:
    if array.shape != (length,) or array.dtype != np.dtype(f"u{ring_bits // 8}"):
        raise InvalidInputError(
            f"the {what} is {array.dtype} of shape {array.shape}",
            hint=f"uint{ring_bits} of shape ({length},), as the roster's parameters say",
        )
    return array.astype(ring_dtype(ring_bits), order="C")  # astype copies: the caller's stays in the clear


def _selected(
    dealt: dict[str, NDArray[np.uint8]], participants: tuple[str, ...], survivors: tuple[str, ...]
) -> bytes:
    """For each survivor its own row (b_i), then the rows of the missing sites (k_ij)."""
    missing = [place for place, name in enumerate(participants) if name not in survivors]
    return b"".join(dealt[name][[participants.index(name), *missing]].tobytes() for name in survivors)
