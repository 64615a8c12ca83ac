"""Where a run stands, folded from its events one by one.

``events.jsonl`` alone says everything: settings, rounds, who answered and who did not, the
accuracies. Each event is taken in once, so that a watcher reads only what is new. Whatever came from
outside (names, reasons) is made one printable line here, at the door; fields that are missing or of
another kind are left out, since a status must not fail over a file.
"""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from ..messages import MAX_NAME, MAX_TEXT, one_line

INFERENCES: Final[Mapping[str, str]] = {
    "plain query": "evaluate-accuracy-plain",
    "one view": "evaluate-accuracy-one-view",
    "ten views": "evaluate-accuracy-ten-views",
}
REPLIED: Final = "replied"
TROUBLES: Final = ("refused", "rejected", "failed", "missing")
LAST_TROUBLES: Final = 20
NOT_STARTED, RUNNING, FINISHED, FAILED = "not started", "running", "finished", "failed"
INTERRUPTED: Final = "interrupted"
STATES: Final = (NOT_STARTED, RUNNING, FINISHED, FAILED, INTERRUPTED)


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A site that did not do what it was asked, or a round that failed (``site`` is empty then)."""

    time: str
    run: str
    round: int
    site: str
    what: str
    kind: str
    reason: str
    hint: str


@dataclass(kw_only=True)
class RunProgress:
    """What the events of one run come to; ``take`` is called with each, in order."""

    name: str
    state: str = NOT_STARTED
    settings: dict[str, Any] = field(default_factory=dict)
    planned_rounds: int = 0
    last_round: int = 0
    rounds_finished: int = 0
    """Times that a round was finished; after a resume some are done a second time."""
    rounds_failed: int = 0
    seconds_of_rounds: float = 0.0
    last_seconds: float | None = None
    train_loss: float | None = None
    sites_of_last_round: tuple[str, ...] = ()
    waiting_for: str = ""
    started_at: str = ""
    last_event_at: str = ""
    end_reason: str = ""
    end_hint: str = ""
    accuracy: dict[str, dict[int, float]] = field(default_factory=dict)
    """Inference mode → round → accuracy of the model after that round (0: the initial one)."""
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(site, "replied" or what went wrong) → how often."""
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(site, kind of refusal) → how often."""
    last_answer: dict[str, str] = field(default_factory=dict)
    epsilon_told: dict[str, float] = field(default_factory=dict)
    troubles: deque[Trouble] = field(default_factory=lambda: deque(maxlen=LAST_TROUBLES))
    unreadable_lines: int = 0

    def take_line(self, line: bytes) -> dict[str, Any] | None:
        """Take in a line of the file; its event, or None where it holds none (it is counted)."""
        try:
            event: Any = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            self.unreadable_lines += 1
            return None
        self.take(event)
        return event

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in one event; those that say nothing about where the run stands change nothing."""
        self.last_event_at = _text(event.get("time")) or self.last_event_at
        match event["event"]:
            case "run-started":
                self._started(event)
            case "run-resumed":
                self._resumed(_whole(event.get("after-round")))
            case "waiting-for-sites":
                absent = ", ".join(_names(event.get("absent")))
                self.waiting_for = f"sites to come online: {absent}" if absent else ""
            case "waiting-for-approval":
                self.waiting_for = f"approval of the plan at {', '.join(_names(event.get('sites')))}"
            case "round-finished":
                self._finished_round(event)
            case "round-failed":
                self.rounds_failed += 1
                self._trouble(event, "round failed")
            case "evaluation-finished":
                self._measured(self.last_round, event.get("metrics"))
            case "site-replied":
                self._replied(event)
            case "site-refused" | "site-rejected" | "site-failed" | "site-missing":
                self._not_done(event)
            case "run-finished" | "run-failed":
                self.state = FINISHED if event["event"] == "run-finished" else FAILED
                self.waiting_for = ""
                self.end_reason, self.end_hint = _text(event.get("reason")), _text(event.get("hint"))

    def curve(self, inference: str) -> list[tuple[int, float]]:
        """(round, accuracy) in the order of rounds."""
        return sorted(self.accuracy.get(inference, {}).items())

    def _started(self, event: Mapping[str, Any]) -> None:
        settings = event.get("settings")
        self.settings = dict(settings) if isinstance(settings, dict) else {}
        self.planned_rounds = _whole(event.get("num-server-rounds"))
        self.started_at = self.started_at or _text(event.get("time"))
        self.state, self.end_reason, self.end_hint, self.waiting_for = RUNNING, "", "", ""

    def _resumed(self, after_round: int) -> None:
        """The rounds after the last checkpoint happen again."""
        self.last_round = after_round
        for measured in self.accuracy.values():
            for later in [number for number in measured if number > after_round]:
                del measured[later]

    def _finished_round(self, event: Mapping[str, Any]) -> None:
        self.last_round = _whole(event.get("round"))
        self.rounds_finished += 1
        self.waiting_for = ""
        self.sites_of_last_round = tuple(_names(event.get("sites")))
        metrics = event.get("metrics")
        metrics = metrics if isinstance(metrics, dict) else {}
        self.last_seconds = _number(metrics.get("seconds"))
        self.seconds_of_rounds += self.last_seconds or 0.0
        self.train_loss = _number(metrics.get("train-loss"))
        self._measured(self.last_round - 1, event.get("incoming"))

    def _measured(self, server_round: int, metrics: Any) -> None:
        """The accuracies of the model after ``server_round`` rounds."""
        for inference, name in INFERENCES.items():
            value = _number(metrics.get(name)) if isinstance(metrics, dict) else None
            if value is not None:
                self.accuracy.setdefault(inference, {})[server_round] = value

    def _replied(self, event: Mapping[str, Any]) -> None:
        site, metrics = _text(event.get("site"), MAX_NAME), event.get("metrics")
        self.answers[site, REPLIED] += 1
        self.last_answer[site] = _text(event.get("time"))
        epsilon = _number(metrics.get("epsilon-spent")) if isinstance(metrics, dict) else None
        if epsilon is not None:
            self.epsilon_told[site] = epsilon

    def _not_done(self, event: Mapping[str, Any]) -> None:
        what, site = event["event"].removeprefix("site-"), _text(event.get("site"), MAX_NAME)
        self.answers[site, what] += 1
        if what == "refused":
            self.refusals[site, _text(event.get("kind"), MAX_NAME) or "error"] += 1
        self._trouble(event, what)

    def _trouble(self, event: Mapping[str, Any], what: str) -> None:
        self.troubles.append(
            Trouble(
                time=_text(event.get("time")),
                run=self.name,
                round=_whole(event.get("round")),
                site=_text(event.get("site"), MAX_NAME),
                what=what,
                kind=_text(event.get("kind"), MAX_NAME),
                reason=_text(event.get("reason")),
                hint=_text(event.get("hint")),
            )
        )


def parse_time(text: str) -> datetime | None:
    """The moment of an event's time stamp, or None."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _text(value: Any, longest: int = MAX_TEXT) -> str:
    return one_line(value, longest).strip() if isinstance(value, str) else ""


def _names(value: Any) -> list[str]:
    return [_text(name, MAX_NAME) for name in value] if isinstance(value, list) else []


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None
