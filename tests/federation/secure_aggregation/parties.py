"""A whole run in one process: sites, server and the messages between them, each sent as bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from federation.secure_aggregation import (
    Advert,
    AggregateSum,
    AggregationParameters,
    Confirmation,
    ConfirmRequest,
    Report,
    ReportRequest,
    Roster,
    ServerSession,
    SessionRequest,
    SiteIdentity,
    SiteSession,
    UnmaskAnswer,
    UnmaskRequest,
)

TEST_VECTOR = bytes(32)
Message = TypeVar("Message", SessionRequest, ReportRequest, ConfirmRequest, UnmaskRequest)


@dataclass
class Parties:
    """Sites with a roster and an open session; ``vectors`` and ``channels`` are what each put in last."""

    identities: dict[str, SiteIdentity]
    roster: Roster
    server: ServerSession
    sites: dict[str, SiteSession]
    vectors: dict[str, NDArray[np.unsignedinteger]] = field(default_factory=dict)
    channels: dict[str, NDArray[np.uint64]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return self.roster.names

    def report(self, name: str, request: ReportRequest) -> Report:
        """``name`` masks a fresh vector and fresh channels, uniform on the ring."""
        parameters = self.roster.parameters
        rng = np.random.default_rng()
        dtype = np.dtype(f"u{parameters.ring_bits // 8}")
        octets = rng.bytes(parameters.vector_bytes)
        self.vectors[name] = np.frombuffer(octets, dtype=dtype)
        self.channels[name] = np.frombuffer(rng.bytes(8 * parameters.num_channels), dtype=np.uint64)
        session = self.sites[name]
        return Report.from_bytes(
            session.report(sent(request), self.vectors[name], self.channels[name]).to_bytes()
        )

    def answer(self, name: str, request: UnmaskRequest) -> UnmaskAnswer:
        return UnmaskAnswer.from_bytes(self.sites[name].unmask(sent(request)).to_bytes())

    def close(self, *, lost_before_confirmation: Iterable[str] = ()) -> dict[str, UnmaskRequest]:
        """Fix the survivors, let them confirm if the run asks for it, and give the requests for shares."""
        survivors = self.server.close_reports()
        if self.roster.parameters.confirm_survivors:
            request = sent(self.server.confirm_request())
            for name in survivors:
                if name not in set(lost_before_confirmation):
                    confirmation = self.sites[name].confirm(request)
                    self.server.add_confirmation(Confirmation.from_bytes(confirmation.to_bytes()))
        return self.server.unmask_requests()

    def round(
        self,
        server_round: int,
        attempt: int = 1,
        *,
        participants: Iterable[str] | None = None,
        lost_before_report: Iterable[str] = (),
        lost_before_confirmation: Iterable[str] = (),
        lost_before_answer: Iterable[str] = (),
    ) -> AggregateSum:
        """One attempt from request to sum, without the sites that are lost on the way."""
        request = self.server.start_round(server_round, attempt, participants=participants)
        for name in self.roster.from_bits(request.participants):
            if name not in set(lost_before_report):
                self.server.add_report(self.report(name, request))
        for name, asked in self.close(lost_before_confirmation=lost_before_confirmation).items():
            if name not in set(lost_before_answer):
                self.server.add_answer(self.answer(name, asked))
        return self.server.finish()

    def clear_sums(self, names: Iterable[str]) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint64]]:
        """What the sum over ``names`` must be, computed in Python's whole numbers."""
        parameters, listed = self.roster.parameters, list(names)
        vectors = [self.vectors[name].astype(object) for name in listed]
        channels = [self.channels[name].astype(object) for name in listed]
        dtype = np.dtype(f"u{parameters.ring_bits // 8}")
        return (
            (sum(vectors[1:], vectors[0]) % 2**parameters.ring_bits).astype(dtype),
            (sum(channels[1:], channels[0]) % 2**64).astype(np.uint64),
        )


def parties(
    num_sites: int = 5,
    *,
    vector_length: int = 37,
    num_channels: int = 3,
    ring_bits: int = 32,
    threshold: int | None = None,
    minimum_sites: int | None = None,
    confirm_survivors: bool = False,
    joining: Iterable[str] | None = None,
    run_name: str = "run",
) -> Parties:
    """Sites ``a`` to ``...`` and a server; ``joining`` send their adverts (all by default)."""
    identities = {name: SiteIdentity.generate(name) for name in site_names(num_sites)}
    parameters = AggregationParameters.for_sites(
        num_sites,
        vector_length=vector_length,
        num_channels=num_channels,
        ring_bits=ring_bits,
        threshold=threshold,
        minimum_sites=minimum_sites,
        confirm_survivors=confirm_survivors,
    )
    roster = Roster(
        run_name=run_name,
        parameters=parameters,
        identities={name: identity.public_key for name, identity in identities.items()},
        settings_sha256=bytes(32),
    )
    return session_of(identities, roster, joining=joining)


def session_of(
    identities: dict[str, SiteIdentity], roster: Roster, *, joining: Iterable[str] | None = None
) -> Parties:
    """A new session of an existing run."""
    server = ServerSession(roster, TEST_VECTOR)
    request = sent(server.request())
    listed = roster.names if joining is None else tuple(joining)
    sites = {name: SiteSession(roster, identities[name], request) for name in listed}
    for session in sites.values():
        server.add_advert(Advert.from_bytes(session.advert().to_bytes()))
    return Parties(identities, roster, server, sites)


def assert_exact(group: Parties, result: AggregateSum) -> None:
    """The server's sum is the survivors' clear sum, bit by bit."""
    vector, channels = group.clear_sums(result.survivors)
    assert result.vector.dtype == vector.dtype
    assert np.array_equal(result.vector, vector)
    assert np.array_equal(result.channels, channels)


def site_names(num_sites: int) -> list[str]:
    return [f"site-{place:03d}" for place in range(num_sites)]


def sent(message: Message) -> Message:
    """The message as the other end reads it."""
    return type(message).from_bytes(message.to_bytes())
