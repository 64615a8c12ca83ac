"""A site's own view: what it was asked, what it answered, what left, what it has spent.

Everything comes from the site's files: the audit log (read on where the last look stopped), the
book of plans, the privacy ledger, and what the site worker and the verb that started it said. There
are counts and the reasons of its own refusals; no image, no file name, no subject is in any of them.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from instahide.errors import InstaHideError

from ..audit_log import Record, parse_line
from ..line_tail import LineTail
from ..messages import MAX_NAME, MAX_TEXT, one_line
from ..node_folder import NodeFolder, worker_listens
from ..plan import SHORT
from ..provisioning import certificate_expiry
from ..site.audit import AUDIT_FILE
from ..site.plans import PlanBook
from ..site.run_history import RunHistory
from .connection import Connection, read_connection
from .run_progress import LAST_TROUBLES, Trouble

LISTENING, WORKER_DOWN = "listening", "down"
PRIVACY_SECONDS: Final = 60.0


@dataclass(kw_only=True)
class RunAtSite:
    """What this site did in one run."""

    name: str
    rounds: int = 0
    measurements: int = 0
    last_round: int = 0
    last_at: str = ""


@dataclass(kw_only=True)
class SiteRecords:
    """The audit log, folded record by record."""

    runs: dict[str, RunAtSite] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    troubles: deque[Trouble] = field(default_factory=lambda: deque(maxlen=LAST_TROUBLES))
    updates_sent: int = 0
    exposures: dict[str, int] = field(default_factory=dict)
    abandoned: int = 0
    num_records: int = 0

    def take(self, record: Record) -> None:
        """Take in one record."""
        self.num_records += 1
        match record.event:
            case "update-sent":
                run = self._run(record)
                run.rounds += 1
                self.updates_sent += 1
                self.exposures = {
                    name: count
                    for name in ("own", "partner", "largest")
                    for count in [record.fields.get(f"exposures-{name}")]
                    if isinstance(count, int)
                }
            case "measurement-sent":
                self._run(record).measurements += 1
            case "request-refused":
                self.refusals[_text(record.fields.get("refusal"))] += 1
                self.troubles.append(_refused(record))
            case "request-abandoned":
                self.abandoned += 1

    def _run(self, record: Record) -> RunAtSite:
        name = _text(record.fields.get("run"), MAX_NAME)
        run = self.runs.setdefault(name, RunAtSite(name=name))
        number = record.fields.get("round")
        run.last_round, run.last_at = number if isinstance(number, int) else 0, record.time
        return run


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """A node at the moment ``made_at``. ``privacy`` is None where nothing was ever charged."""

    name: str
    made_at: datetime
    worker: str
    joined: bool
    coordinator: str
    connection: Connection
    ready: dict[str, Any]
    records: SiteRecords
    waiting_plans: list[str]
    authority_ends: datetime | None
    privacy: dict[str, Any] | None
    notes: list[str]

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values under kebab-case keys."""
        mapping: dict[str, Any] = {
            "name": self.name,
            "time": f"{self.made_at:%Y-%m-%dT%H:%M:%SZ}",
            "worker": self.worker,
            "joined": self.joined,
            "coordinator": self.coordinator,
            "connection": vars(self.connection),
            "ready": self.ready,
            "runs": [
                {
                    "name": run.name,
                    "rounds": run.rounds,
                    "measurements": run.measurements,
                    "last-round": run.last_round,
                    "last-at": run.last_at,
                }
                for run in self.records.runs.values()
            ],
            "refusals": dict(self.records.refusals),
            "last-refusals": [vars(trouble) for trouble in self.records.troubles],
            "exposures": self.records.exposures,
            "plans-waiting": self.waiting_plans,
            "authority-ends": None
            if self.authority_ends is None
            else f"{self.authority_ends:%Y-%m-%dT%H:%M:%SZ}",
            "notes": self.notes,
        }
        if self.privacy is not None:
            mapping["privacy"] = self.privacy
        return mapping


class NodeWatch:
    """A node's folder, looked at again and again.

    Epsilon costs a second or two of processor time, so it is worked out again only where the ledger
    has changed, and at most every ``PRIVACY_SECONDS``.
    """

    def __init__(self, folder: NodeFolder, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._tail = LineTail(folder.state / AUDIT_FILE)
        self._records = SiteRecords()
        self._monotonic = monotonic
        self._privacy: dict[str, Any] | None = None
        self._privacy_of: object = None
        self._privacy_until = float("-inf")

    def status(self, now: datetime, *, connection: Connection | None = None) -> NodeStatus:
        """What is known now; never raises for a damaged file: a note says so."""
        notes: list[str] = []
        self.read_records()
        settings = self._settings(notes)
        return NodeStatus(
            name=one_line(str(settings.get("name", self.folder.path.name)), MAX_NAME),
            made_at=now,
            worker=LISTENING if worker_listens(self.folder) else WORKER_DOWN,
            joined=self.folder.node_config.exists(),
            coordinator=one_line(str(settings.get("coordinator", "")), MAX_NAME),
            connection=connection or read_connection(self.folder.state),
            ready=self._ready(),
            records=self._records,
            waiting_plans=sorted(sha256[:SHORT] for sha256 in PlanBook(self.folder.state).pending()),
            authority_ends=self._authority_ends(),
            privacy=self._spent(notes),
            notes=notes,
        )

    def read_records(self) -> list[Record]:
        """New records of the audit log, taken in."""
        lines = self._tail.read()
        if self._tail.is_new_file:
            self._records = SiteRecords()
        records = [record for record in map(parse_line, lines) if record is not None]
        for record in records:
            self._records.take(record)
        return records

    def _settings(self, notes: list[str]) -> dict[str, str]:
        from ..flower_processes.node import load_settings

        if not self.folder.node_config.exists():
            return {}
        try:
            settings = load_settings(self.folder.node_config)
        except InstaHideError as error:
            notes.append(one_line(error.message))
            return {}
        return {"name": settings.name, "coordinator": settings.coordinator}

    def _ready(self) -> dict[str, Any]:
        try:
            ready: Any = json.loads(self.folder.ready_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return ready if isinstance(ready, dict) else {}

    def _authority_ends(self) -> datetime | None:
        try:
            return certificate_expiry(self.folder.authority)
        except (InstaHideError, OSError):
            return None

    def _spent(self, notes: list[str]) -> dict[str, Any] | None:
        """As `instahide node privacy` says it."""
        from ..privacy_ledger import LEDGER_NAME, read_entries
        from ..site.policy import load_policy
        from ..site.privacy_report import privacy_report

        path = self.folder.state / LEDGER_NAME
        try:
            seen = (_stamp(path), _stamp(self.folder.policy))
            if seen != self._privacy_of and self._monotonic() >= self._privacy_until:
                entries = read_entries(path)
                rounds = RunHistory(self.folder.state).rounds_trained()
                policy = load_policy(self.folder.policy)
                self._privacy = privacy_report(entries, policy, rounds) if entries else None
                self._privacy_of = seen
                self._privacy_until = self._monotonic() + (PRIVACY_SECONDS if entries else 0.0)
        except FileNotFoundError:
            return None
        except InstaHideError as error:
            notes.append(one_line(error.message))
            return None
        return self._privacy


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _refused(record: Record) -> Trouble:
    number = record.fields.get("round")
    return Trouble(
        time=record.time,
        run=_text(record.fields.get("run"), MAX_NAME),
        round=number if isinstance(number, int) else 0,
        site="",
        what="refused",
        kind=_text(record.fields.get("refusal"), MAX_NAME),
        reason=_text(record.fields.get("reason")) or "an error here: the worker's log says which",
        hint="",
    )


def _text(value: Any, longest: int = MAX_TEXT) -> str:
    return one_line(value, longest).strip() if isinstance(value, str) else ""
