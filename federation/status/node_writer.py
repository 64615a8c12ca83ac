"""The one writer of a node's status files: the verb ``instahide node start``, which sees both its processes.

``look`` is called every second. It says each answer of the site in a line, and writes when there was one,
a plan came or was decided, the connection changed, or the files are ``REWRITE_SECONDS`` old.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from ..audit_log import Record
from ..node_folder import NodeFolder
from .connection import CONNECTING, DOWN, Connection, write_connection
from .files import StatusFiles
from .node_metrics import node_metrics
from .node_page import node_page
from .node_status import NodeWatch
from .page_parts import REWRITE_SECONDS


class NodeWriter:
    """Keeps a node's ``status.html``, ``metrics.prom`` and ``state/service.json`` up to date.

    Args:
        node: whose files are read.
        files: what is written.
        say: takes a line for the log.
    """

    def __init__(
        self,
        node: NodeFolder,
        files: StatusFiles,
        *,
        say: Callable[[str], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node, self._files, self._watch = node, files, NodeWatch(node)
        self._say, self._now, self._monotonic = say, now, monotonic
        self._written_at = float("-inf")
        self._shown: object = None
        self._has_failed = False
        self._connection = Connection(state=CONNECTING)
        self.connection(CONNECTING)
        self._new_records()  # what was there before is no news

    def connection(self, state: str, reason: str = "") -> None:
        """The connection to the coordinator has changed; the next ``look`` shows it."""
        self._connection = Connection(state=state, reason=reason)
        try:
            self._connection = write_connection(self._node.state, state, self._now(), reason=reason)
        except OSError as error:
            if not self._has_failed:
                self._say(f"state/service.json cannot be written ({error.strerror}); the service goes on")
            self._has_failed = True

    def look(self, waiting_plans: frozenset[str]) -> bool:
        """Say what is new; write the files if something is, or they are old. Whether they were written."""
        records = self._new_records()
        for record in records:
            if words := in_words(record):
                self._say(words)
        now = self._monotonic()
        seen = (self._connection, waiting_plans)
        if not records and seen == self._shown and now - self._written_at < REWRITE_SECONDS:
            return False
        self._shown, self._written_at = seen, now
        return self._files.write(self._render)

    def close(self, problem: str = "") -> None:
        """Write a last time, that the node was stopped, or that it ended because of a problem."""
        self.connection(DOWN, problem or "stopped, in order")
        self._files.write(self._render)

    def _new_records(self) -> list[Record]:
        try:
            return self._watch.read_records()
        except OSError:  # the page says what it can; the worker says that its log cannot be read
            return []

    def _render(self) -> tuple[str, str]:
        status = self._watch.status(self._now(), connection=self._connection)
        return node_page(status), node_metrics(status)


def in_words(record: Record) -> str | None:
    """A record of the audit log as a line for people; None for those that another line says."""
    about = f"run {record.fields.get('run')}, round {record.fields.get('round')}"
    match record.event:
        case "update-sent":
            return f"{about}: update sent"
        case "measurement-sent":
            return f"{about}: model measured"
        case "request-refused":
            reason = record.fields.get("reason") or "an error here: see state/worker.log"
            return f"{about}: refused ({record.fields.get('refusal')}): {reason}"
        case "request-abandoned":
            return f"{about}: nobody waited for the answer any more"
        case "policy-changed":
            return "policy.toml has changed"
    return None
