"""What the coordinator needs of a network and of a clock, and nothing more.

The rounds are written against these two protocols. ``federation/server_app.py`` fits Flower's
grid to the first; the tests use a grid and a clock that live in one process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..messages import RoundRequest, SiteReply


@dataclass(frozen=True, kw_only=True)
class GridReply:
    """One answer off the network: a reply, or an error text when none can be had.

    ``source`` is the node that sent it; 0 when the network itself reports the failure.
    """

    message_id: str
    source: int = 0
    reply: SiteReply | None = None
    error: str = ""


class RoundGrid(Protocol):
    """The network: who is there, send these, what has come back."""

    def online_nodes(self) -> dict[int, str]:
        """Node id → a stamp that changes whenever that node starts anew."""

    def push(self, requests: Mapping[int, RoundRequest], *, lifetime: float) -> dict[int, str]:
        """Send one request to each node; node id → message id, without those that could not be sent.

        ``lifetime``: seconds after which the network may forget the message.
        """

    def pull(self, message_ids: Sequence[str]) -> list[GridReply]:
        """The replies that have arrived for these messages; each is handed out once."""


class Clock(Protocol):
    """Time that passes, and waiting for it."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
