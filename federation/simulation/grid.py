"""The network of a simulation: everybody is there, answers when asked, or drops out by the toss of a coin.

:class:`SimulatedGrid` is the coordinator's :class:`~federation.coordinator.grid.RoundGrid`. With probability
p a hospital that is asked to train is lost to that attempt: before it begins, or, half of the time where the
run has secure aggregation, after its masked report is in, so that its shares are missing. The coordinator
sees the error that Flower reports for a node that is gone. Tosses come from a public seed, the round and
the attempt: a study repeats them. There is no latency, no bandwidth and no order of arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..coordinator.grid import GridReply
from ..messages import TRAIN, UNMASK, Arrays, RoundRequest, SiteReply

LOST = "dropped out (simulated)"


@dataclass(frozen=True)
class Order:
    """A request to one hospital."""

    number: int
    request: RoundRequest


class Players(Protocol):
    """Whoever plays the hospitals: this process, others, or Flower's."""

    def answer(self, orders: Sequence[Order]) -> Iterator[tuple[int, SiteReply]]:
        """(hospital, reply) for each order, in any order."""


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Who is lost in an attempt: each with ``probability``, by ``seed``."""

    probability: float = 0.0
    seed: int = 0

    def lost(self, numbers: Sequence[int], server_round: int, attempt: int) -> tuple[set[int], set[int]]:
        """Those lost before they train, and those lost after they have reported."""
        if self.probability == 0.0:
            return set(), set()
        tosses = np.random.default_rng([self.seed, server_round, attempt]).random((len(numbers), 2))
        early = tosses[:, 1] < 0.5
        lost = tosses[:, 0] < self.probability
        return (
            {number for number, gone in zip(numbers, lost & early, strict=True) if gone},
            {number for number, gone in zip(numbers, lost & ~early, strict=True) if gone},
        )


class SimulatedGrid:
    """Hospitals ``numbers``, played by ``players``.

    ``watch(server_round, weights)`` is called with every global model that goes out to be trained, which
    the coordinator of a real run does not show to anybody but the sites. ``bytes_sent`` and
    ``bytes_received`` count weights and records of secure aggregation, seen from the coordinator.
    """

    def __init__(
        self,
        players: Players,
        numbers: Sequence[int],
        *,
        dropout: Dropout | None = None,
        watch: Callable[[int, Arrays], None] = lambda server_round, arrays: None,
    ) -> None:
        self._players, self._numbers, self._watch = players, list(numbers), watch
        self._dropout = dropout or Dropout()
        self._answers: dict[str, GridReply] = {}
        self._sent = 0
        self._attempts: dict[int, int] = {}
        self._lost_later: set[int] = set()
        self.num_dropped = self.num_answered = self.bytes_sent = self.bytes_received = 0

    def online_nodes(self) -> dict[int, str]:
        return dict.fromkeys(self._numbers, "here")

    def push(self, requests: Mapping[int, RoundRequest], *, lifetime: float) -> dict[int, str]:
        """The orders are carried out before this returns."""
        ids = {number: f"message-{self._sent + place}" for place, number in enumerate(requests)}
        self._sent += len(ids)
        lost = self._lost(requests)
        self.num_dropped += len(lost)
        for number in lost:
            self._answers[ids[number]] = GridReply(message_id=ids[number], error=LOST)
        orders = [Order(number, request) for number, request in requests.items() if number not in lost]
        for number, reply in self._players.answer(orders):
            self.num_answered += 1
            self.bytes_sent += _payload(requests[number])
            self.bytes_received += _payload(reply)
            self._answers[ids[number]] = GridReply(message_id=ids[number], source=number, reply=reply)
        return ids

    def pull(self, message_ids: Sequence[str]) -> list[GridReply]:
        return [self._answers.pop(key) for key in message_ids if key in self._answers]

    def _lost(self, requests: Mapping[int, RoundRequest]) -> set[int]:
        request = next(iter(requests.values()))
        if request.kind == UNMASK:
            return self._lost_later & set(requests)
        self._lost_later = set()
        if request.kind != TRAIN:
            return set()
        number, attempt = request.server_round, self._attempts.get(request.server_round, 0)
        if attempt == 0:
            self._watch(number - 1, request.arrays)
        self._attempts[number] = attempt + 1
        early, late = self._dropout.lost(sorted(requests), number, attempt)
        if not request.secure_aggregation:
            return early | late
        self._lost_later = late
        return early


def _payload(message: RoundRequest | SiteReply) -> int:
    """Bytes of weights and of secure aggregation's record: all but some kilobytes of a message."""
    return sum(array.nbytes for array in message.arrays.values()) + len(message.aggregation_record)


class InThisProcess:
    """Players that are played here, one after the other."""

    def __init__(self, answer: Callable[[int, RoundRequest], SiteReply]) -> None:
        self._answer = answer

    def answer(self, orders: Sequence[Order]) -> Iterator[tuple[int, SiteReply]]:
        for order in orders:
            yield order.number, self._answer(order.number, order.request)


class SimulatedClock:
    """Time that passes only when somebody waits, and then at once."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds
