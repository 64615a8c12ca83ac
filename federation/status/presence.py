"""Which hospitals are connected, asked of the SuperLink every few seconds in a thread of its own.

The SuperLink may be slow, or gone; whoever needs the answer takes the last one and never waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .study_status import Presence

EVERY_SECONDS: Final = 5.0


class PresenceWatch:
    """Calls ``ask`` again and again while the block runs; the last answer is kept, None after a failure."""

    def __init__(self, ask: Callable[[], Presence], *, every: float = EVERY_SECONDS) -> None:
        self._ask, self._every = ask, every
        self._latest: Presence | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def latest(self) -> Presence | None:
        """The last answer."""
        return self._latest

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._latest = self._ask()
            except Exception:  # whatever it is, it is the SuperLink's, and the run has its own way to say so
                self._latest = None
            self._stop.wait(self._every)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)  # it is a daemon: a SuperLink that hangs does not keep us


def superlink_presence(address: str, authority: Path) -> Callable[[], Presence]:
    """A function that asks the SuperLink at ``address``; Flower is imported at its first call."""
    clients: list[object] = []

    def ask() -> Presence:
        from ..flower_processes.control import ControlClient

        if not clients:
            clients.append(ControlClient(address, authority=authority))
        client = clients[0]
        assert isinstance(client, ControlClient)
        return {node.node_id: node.status for node in client.list_nodes()}

    return ask
