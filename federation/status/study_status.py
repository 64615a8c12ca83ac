"""What a study's files say about it, at one moment; the coordinator may be up or down.

:class:`StudyWatch` reads only what is new since the last look, so that a supervisor can look every
second. Whether the coordinator is up and which hospitals are connected only the SuperLink knows: the
caller asks it (``presence``) or says None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from instahide.errors import InstaHideError

from ..line_tail import LineTail
from ..messages import MAX_NAME, one_line
from ..provisioning import certificate_expiry
from ..study import Study, run_is_served
from .audits import Finding, leak_curves, read_findings
from .privacy import EpsilonSpent, RunPrivacy
from .run_progress import INFERENCES, INTERRUPTED, RUNNING, RunProgress, Trouble

UP, DOWN, STOPPED = "up", "down", "stopped"
UNKNOWN: Final = "unknown"
ONLINE: Final = "online"
CERTIFICATES: Final = ("gateway", "superlink", "authority")
EVENT_FILE: Final = "events.jsonl"
WARN_DAYS: Final = 30

Presence = Mapping[int, str]
"""Node id → "online", "offline" or "registered", as Flower says it."""


@dataclass(frozen=True, kw_only=True)
class SiteStatus:
    """An admitted hospital. ``status`` is "unknown" where nobody could be asked."""

    name: str
    status: str
    images: int
    last_answer: str


@dataclass(frozen=True, kw_only=True)
class CertificateStatus:
    """A certificate of the study; ``ends`` is None where it cannot be read."""

    name: str
    ends: datetime | None

    def days_left(self, now: datetime) -> int | None:
        """Whole days, negative once it has ended."""
        return None if self.ends is None else (self.ends - now).days


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run: what its events say, what it has spent, what attacks found."""

    progress: RunProgress
    state: str
    epsilon: list[EpsilonSpent]
    findings: list[Finding]
    unreadable_files: int

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values."""
        run = self.progress
        mapping: dict[str, Any] = {
            "name": run.name,
            "state": self.state,
            "rounds": run.last_round,
            "planned-rounds": run.planned_rounds,
            "failed-rounds": run.rounds_failed,
            "seconds-of-last-round": run.last_seconds,
            "waiting-for": run.waiting_for,
            "sites-of-last-round": list(run.sites_of_last_round),
            "accuracy": {mode: [list(point) for point in run.curve(mode)] for mode in INFERENCES},
            "refusals": [vars(trouble) for trouble in run.troubles],
            "end-reason": run.end_reason,
            "end-hint": run.end_hint,
            "last-event": run.last_event_at,
            "audits": [finding.to_mapping() for finding in self.findings],
            "leak": {
                name: [list(point) for point in line] for name, line in leak_curves(self.findings).items()
            },
        }
        if self.epsilon:
            mapping["epsilon"] = [vars(row) for row in self.epsilon]
        return mapping


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """The study at the moment ``made_at``; ``down_reason`` is "" while the coordinator is up."""

    address: str
    coordinator: str
    made_at: datetime
    sites: list[SiteStatus]
    runs: list[RunStatus]
    certificates: list[CertificateStatus]
    down_reason: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def troubles(self) -> list[Trouble]:
        """The last ones of all runs, the newest first."""
        found = [trouble for run in self.runs for trouble in run.progress.troubles]
        return sorted(found, key=lambda trouble: trouble.time, reverse=True)

    def count_online(self) -> int | None:
        """Connected hospitals; None where nobody could be asked."""
        if all(site.status == UNKNOWN for site in self.sites):
            return None
        return sum(site.status == ONLINE for site in self.sites)

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values under kebab-case keys."""
        return {
            "address": self.address,
            "coordinator": self.coordinator,
            "down-reason": self.down_reason,
            "time": in_utc(self.made_at),
            "sites": [
                {
                    "name": site.name,
                    "status": site.status,
                    "images": site.images,
                    "last-answer": site.last_answer,
                }
                for site in self.sites
            ],
            "runs": [run.to_mapping() for run in self.runs],
            "certificates": [
                {
                    "name": one.name,
                    "ends": None if one.ends is None else in_utc(one.ends),
                    "days-left": one.days_left(self.made_at),
                }
                for one in self.certificates
            ],
            "notes": self.notes,
        }


class _RunWatch:
    """One run's folder: its events as they come, and what is kept between two looks."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self._tail = LineTail(folder / EVENT_FILE)
        self.progress = RunProgress(name=one_line(name, MAX_NAME))
        self._privacy = RunPrivacy(folder)

    def read(self) -> list[dict[str, Any]]:
        """New events, taken in."""
        lines = self._tail.read()
        if self._tail.is_new_file:
            self.progress = RunProgress(name=self.progress.name)
        events = [self.progress.take_line(line) for line in lines]
        return [event for event in events if event is not None]

    def status(self) -> RunStatus:
        state = self.progress.state
        if state == RUNNING and not run_is_served(self.folder):
            state = INTERRUPTED  # a ServerApp that was killed could not write its end
        findings, unreadable = read_findings(self.folder)
        return RunStatus(
            progress=self.progress,
            state=state,
            epsilon=self._privacy.rows(self.progress),
            findings=findings,
            unreadable_files=unreadable,
        )


class StudyWatch:
    """A study, looked at again and again."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._runs: dict[str, _RunWatch] = {}

    def read_events(self) -> list[tuple[str, dict[str, Any]]]:
        """(run, event) of everything that is new since the last call, run by run."""
        names = self._study.run_names()
        self._runs = {
            name: self._runs.get(name) or _RunWatch(name, self._study.run_folder(name)) for name in names
        }
        return [(name, event) for name in names for event in self._runs[name].read()]

    def status(
        self,
        now: datetime,
        *,
        coordinator: str,
        presence: Presence | None,
        down_reason: str = "",
    ) -> StudyStatus:
        """What is known now; call ``read_events`` first. Never raises for a damaged file: a note says so."""
        runs = [watch.status() for watch in self._runs.values()]
        notes: list[str] = []
        return StudyStatus(
            address=self._study.address,
            coordinator=coordinator,
            made_at=now,
            sites=self._sites(runs, presence, notes),
            runs=runs,
            certificates=[_certificate(self._study.path / f"{name}.crt", name) for name in CERTIFICATES],
            down_reason=one_line(down_reason),
            notes=notes + [note for run in runs for note in _notes(run)],
        )

    def _sites(self, runs: list[RunStatus], presence: Presence | None, notes: list[str]) -> list[SiteStatus]:
        try:
            admitted = self._study.sites()
        except InstaHideError as error:
            notes.append(error.message)
            return []
        answers = [run.progress.last_answer for run in runs]
        return [
            SiteStatus(
                name=one_line(site.name, MAX_NAME),
                status=UNKNOWN if presence is None else presence.get(site.node_id, "not registered"),
                images=site.num_examples,
                last_answer=max(
                    (told.get(one_line(site.name, MAX_NAME), "") for told in answers), default=""
                ),
            )
            for site in admitted
        ]


def in_utc(moment: datetime) -> str:
    """``2026-11-26T08:30:00Z``."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _certificate(path: Path, name: str) -> CertificateStatus:
    try:
        return CertificateStatus(name=name, ends=certificate_expiry(path))
    except (InstaHideError, OSError):
        return CertificateStatus(name=name, ends=None)


def _notes(run: RunStatus) -> list[str]:
    name = run.progress.name
    notes = []
    if run.progress.unreadable_lines:
        notes.append(f"{run.progress.unreadable_lines} lines of {name}'s {EVENT_FILE} cannot be read")
    if run.unreadable_files:
        notes.append(f"{run.unreadable_files} files in {name}'s audit folder are no results of an attack")
    return notes
