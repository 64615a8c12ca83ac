"""What can happen to one message of a masked round: lost, late, twice, cut, changed, out of place.

A changed bit of a masked vector itself is not among them: nobody can tell it from the right one, which
is what a mask is for. Against that stands TLS, whose links lose the connection instead
(``test_masked_processes.py``).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from federation.coordinator.grid import GridReply
from federation.messages import CONFIRM, EVALUATE, SESSION, TRAIN, UNMASK, RoundRequest, SiteReply
from federation.secure_aggregation import Report
from instahide.errors import InstaHideError

from ..federation.coordinator.fakes import FakeGrid
from ..federation.coordinator.masked_sites import Hospitals

KINDS = (SESSION, TRAIN, CONFIRM, UNMASK, EVALUATE)


@dataclass
class Network:
    """Hospitals behind a network in which ``faults`` happen, each to one message.

    Attributes:
        faults: (node, kind) -> name of a fault of :data:`FAULTS`; each comes once.
        answered: called with every record that leaves a site in answer to a request for shares.
    """

    hospitals: Hospitals
    faults: dict[tuple[int, str], str]
    chance: random.Random
    answered: Callable[[int, bytes], None]

    def __post_init__(self) -> None:
        self.grid: FakeGrid | None = None
        self.requests: dict[tuple[int, str], RoundRequest] = {}
        self.replies: dict[tuple[int, str], SiteReply] = {}

    def __call__(self, node: int, request: RoundRequest) -> Any:
        fault = self.faults.pop((node, request.kind), "") if self._has_come(node, request) else ""
        self.before = self.replies.get((node, request.kind)), self.requests.get((node, request.kind))
        self.requests[node, request.kind] = request
        return FAULTS[fault](self, node, request) if fault else self.answer(node, request)

    def _has_come(self, node: int, request: RoundRequest) -> bool:
        """Replays need something to replay, so theirs is the second message of its kind."""
        fault = self.faults.get((node, request.kind), "")
        return not fault.endswith("earlier round") or (node, request.kind) in self.replies

    def answer(self, node: int, request: RoundRequest) -> SiteReply:
        """What the site answers, as it leaves the site."""
        reply: SiteReply = self.hospitals(node, request)
        if reply.refusal is None:
            self.replies[node, request.kind] = reply
            if request.kind == UNMASK:
                self.answered(node, reply.aggregation_record)
        return reply

    def restart(self, node: int) -> None:
        self.hospitals.start(node)
        assert self.grid is not None
        self.grid.online[node] += " again"

    def flipped(self, record: bytes, *, spare: tuple[bytes, ...] = ()) -> bytes:
        """One bit of a record changed, not within any of ``spare``."""
        kept = [(record.index(part), len(part)) for part in spare if part]
        while True:
            place = self.chance.randrange(len(record))
            if not any(first <= place < first + length for first, length in kept):
                break
        changed = bytearray(record)
        changed[place] ^= 1 << self.chance.randrange(8)
        return bytes(changed)


def _crashed(network: Network, node: int, request: RoundRequest) -> Any:
    return "the client crashed"


def _silent(network: Network, node: int, request: RoundRequest) -> Any:
    return None


def _killed_before(network: Network, node: int, request: RoundRequest) -> Any:
    network.restart(node)
    return None


def _killed_after(network: Network, node: int, request: RoundRequest) -> Any:
    reply = network.answer(node, request)
    network.restart(node)
    return reply


def _lost_answer(network: Network, node: int, request: RoundRequest) -> Any:
    network.answer(node, request)
    return None


def _late(network: Network, node: int, request: RoundRequest) -> Any:
    return 61.0, network.answer(node, request)


def _twice(network: Network, node: int, request: RoundRequest) -> Any:
    assert network.grid is not None
    reply = network.answer(node, request)
    name = f"message-{len(network.grid.sent) - 1}"
    network.grid.extra.append(GridReply(message_id=name, source=node, reply=reply))
    return reply


def _asked_twice(network: Network, node: int, request: RoundRequest) -> Any:
    network.answer(node, request)
    return network.answer(node, request)


def _replayed_reply(network: Network, node: int, request: RoundRequest) -> Any:
    earlier, _ = network.before
    network.answer(node, request)
    return earlier


def _replayed_request(network: Network, node: int, request: RoundRequest) -> Any:
    _, earlier = network.before
    assert earlier is not None
    return network.answer(node, earlier)


def _of_another(network: Network, node: int, request: RoundRequest) -> Any:
    network.answer(node, request)
    other = next(each for each in network.hospitals.sites if each != node)
    return network.replies.get((other, request.kind))


def _cut(network: Network, node: int, request: RoundRequest) -> Any:
    reply = network.answer(node, request)
    if reply.refusal is not None:
        return reply
    record = reply.aggregation_record
    return replace(reply, aggregation_record=record[: network.chance.randrange(len(record))])


def _changed(network: Network, node: int, request: RoundRequest) -> Any:
    reply = network.answer(node, request)
    if reply.refusal is not None:
        return reply
    spare: tuple[bytes, ...] = ()
    if request.kind in (TRAIN, EVALUATE):
        report = Report.from_bytes(reply.aggregation_record)
        spare = (bytes(report.vector), bytes(report.channels))
    return replace(reply, aggregation_record=network.flipped(reply.aggregation_record, spare=spare))


def _changed_request(network: Network, node: int, request: RoundRequest) -> Any:
    return network.answer(
        node, replace(request, aggregation_record=network.flipped(request.aggregation_record))
    )


FAULTS: dict[str, Callable[[Network, int, RoundRequest], Any]] = {
    "an error instead of a reply": _crashed,
    "no reply": _silent,
    "site killed before the work": _killed_before,
    "site killed after the reply": _killed_after,
    "the reply is lost": _lost_answer,
    "the reply is late": _late,
    "the reply comes twice": _twice,
    "the request comes twice": _asked_twice,
    "the reply of an earlier round": _replayed_reply,
    "the request of an earlier round": _replayed_request,
    "another site's reply": _of_another,
    "the reply is cut": _cut,
    "a bit of the reply is changed": _changed,
    "a bit of the request is changed": _changed_request,
}


def kinds_for(fault: str) -> tuple[str, ...]:
    """A run has one session and one measurement: no earlier one whose messages could come again."""
    return (TRAIN, CONFIRM, UNMASK) if fault.endswith("earlier round") else KINDS


def is_explained(problem: BaseException) -> bool:
    """An abort says what is wrong and what to do."""
    return isinstance(problem, InstaHideError) and bool(problem.message) and bool(problem.hint)
