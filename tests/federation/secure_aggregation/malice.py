"""A server that does not follow the protocol, and sites that collude with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from federation.secure_aggregation import Report, UnmaskAnswer, UnmaskRequest
from federation.secure_aggregation.key_agreement import Position
from federation.secure_aggregation.sealing import open_package

from .parties import Parties

Shares = dict[tuple[str, str], dict[str, NDArray[np.uint8]]]
"""(dealer, the other site or the dealer itself) -> answering site -> 32 bytes of that seed's share."""


def unmask_request(
    group: Parties, recipient: str, survivors: Iterable[str], reports: Mapping[str, Report]
) -> UnmaskRequest:
    """Any survivor set for any site, with the true packages: the server holds them all."""
    report = reports[recipient]
    listed = group.roster.sort(survivors)
    return UnmaskRequest(
        session_id=report.session_id,
        server_round=report.server_round,
        attempt=report.attempt,
        survivors=group.roster.to_bits(listed),
        packages=tuple(
            package_for(group, reports[dealer], recipient) for dealer in listed if dealer != recipient
        ),
        confirmations=(),
    )


def package_for(group: Parties, report: Report, recipient: str) -> bytes:
    others = [name for name in group.roster.from_bits(report.participants) if name != report.site]
    return report.packages[others.index(recipient)]


def learn_from_answer(
    group: Parties, answer: UnmaskAnswer, participants: tuple[str, ...], known: Shares
) -> None:
    """File the shares of an answer under the seeds they belong to."""
    survivors = group.roster.from_bits(answer.survivors)
    missing = [name for name in participants if name not in survivors]
    shares = np.frombuffer(answer.shares, np.uint8).reshape(len(survivors), 1 + len(missing), 32)
    for dealer, rows in zip(survivors, shares, strict=True):
        for about, share in zip([dealer, *missing], rows, strict=True):
            known.setdefault((dealer, about), {})[answer.site] = share


def learn_from_colluder(group: Parties, colluder: str, reports: Mapping[str, Report], known: Shares) -> None:
    """Everything a site that hands over its memory knows: all shares ever sealed for it, of all seeds."""
    session = group.sites[colluder]
    own = reports[colluder]
    participants = group.roster.from_bits(own.participants)
    position = Position(own.server_round, own.attempt, own.participants)
    for dealer in participants:
        if dealer == colluder:
            assert session._open is not None
            content = session._open.own_shares.tobytes()
        else:
            assert session._cohort is not None
            keys = session._cohort.keys[dealer]
            content = open_package(
                keys, position, dealer, colluder, package_for(group, reports[dealer], colluder)
            )
        rows = np.frombuffer(content, np.uint8).reshape(-1, 32)
        for about, share in zip(participants, rows, strict=True):
            known.setdefault((dealer, about), {})[colluder] = share
