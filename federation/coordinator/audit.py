"""The coordinator's audit log: what it asked, who answered with what, what it made of it.

A run's events are many and detailed; the audit log takes the few that a site may one day want to
hold against its own, with hashes in place of contents: the settings, each site's update as it
came, the aggregate, the checkpoint, the model. With each answer it keeps the signed head of that
site's log. Metrics, weights, file names and reasons of errors stay in ``events.jsonl``.

Events are written first: a run must be able to say why it failed even where the audit log cannot
be written, which is a failure of the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..audit_log import AuditLog, Record, canonical_json
from ..config import RunConfig
from ..identity import IDENTITY_FILE, load_identity
from .events import EventLog

AUDIT_FILE: Final = "audit.jsonl"
ROLE: Final = "coordinator"

# Event -> the fields of it that are recorded.
AUDITED: Final[Mapping[str, tuple[str, ...]]] = {
    "run-started": ("sites",),
    "run-resumed": ("after-round",),
    "run-finished": ("rounds", "model-sha256"),
    "run-failed": (),
    "round-started": ("round",),
    "round-finished": ("round", "sites", "left-out", "aggregate-sha256"),
    "round-failed": ("round", "attempt"),
    "evaluation-started": ("round",),
    "evaluation-finished": ("round", "sites"),
    "site-replied": ("round", "site", "kind", "update-sha256", "audit-head"),
    "site-refused": ("round", "site", "kind", "audit-head"),
    "site-rejected": ("round", "site", "reason"),
    "site-failed": ("round", "site"),
    "site-missing": ("round", "site"),
    "session-opened": ("round", "sites", "roster-sha256"),
    "sum-opened": ("round", "kind", "sites", "missing", "disputes"),
    "checkpoint-saved": ("round", "sha256"),
}


class AuditedEvents:
    """Passes events on to ``events.jsonl``, and the audited ones to the audit log, if there is one."""

    def __init__(self, events: EventLog, config: RunConfig) -> None:
        self._events, self._run = events, config.run_name
        self._folder = Path(config.audit_folder) if config.audit_folder else None
        self._log: AuditLog | None = None
        self._last: Record | None = None

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event. Raises as AuditLog does, and as :func:`open_audit_log` the first time."""
        self._events.emit(event, **fields)
        if self._folder is None or event not in AUDITED:
            return
        self._log = self._log or open_audit_log(self._folder)
        kept = {key: fields[key] for key in AUDITED[event] if key in fields}
        if "settings" in fields:
            kept["settings-sha256"] = hashlib.sha256(canonical_json(fields["settings"])).hexdigest()
        self._last = self._log.append(event, run=self._run, **kept)

    def head(self) -> str:
        """The signed head of the log as it is now, for a request; "" without a log."""
        if self._log is None or self._last is None:
            return ""
        return self._log.sign(self._last).to_text()

    def close(self) -> None:
        """Close ``events.jsonl``; the audit log is on the disk already."""
        self._events.close()


def open_audit_log(folder: Path) -> AuditLog:
    """The log of the coordinator whose identity key is in ``folder``.

    Raises InvalidInputError without a key, IntegrityError for a damaged log or one of another key.
    """
    return AuditLog(folder / AUDIT_FILE, load_identity(folder / IDENTITY_FILE), role=ROLE, name=ROLE)
