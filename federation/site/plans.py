"""The site's book of plans: which it has seen, which it has approved, and who decided when.

    state/plans/HASH.json            a plan (``federation/plan.py``), when it was first seen
    state/plans/HASH.decision.json   approved or rejected, by whom, when

The worker writes down the plan of a request that it does not know, and refuses it as waiting; a
person at the hospital decides with ``instahide node plan``. Only the second file lets a request
through, and no message can write it. Both are replaced atomically. What waits is bounded in number
and size, so a coordinator that sends ever new plans fills no disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from instahide.atomic import atomic_write_text
from instahide.errors import IntegrityError, InvalidInputError, RefusedError

from ..plan import SHORT, Plan

PLANS_FOLDER: Final = "plans"
MAX_PENDING: Final = 20
PENDING, APPROVED, REJECTED = "pending", "approved", "rejected"
_SUFFIX, _DECISION = ".json", ".decision.json"
_SHORTEST_PREFIX: Final = 6


class AwaitingApprovalError(RefusedError):
    """The plan is known now and waits for a person at the site."""


@dataclass(frozen=True, kw_only=True)
class PlanEntry:
    """A plan and what was decided about it; ``by`` and ``decided_at`` are empty while it waits."""

    plan: Plan
    seen_at: str
    status: str = PENDING
    by: str = ""
    decided_at: str = ""


class PlanBook:
    """The plans of one site. Every call reads the files anew: worker and commands share them.

    Args:
        state_folder: the site's state folder.
        now: the clock.
    """

    def __init__(
        self, state_folder: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._folder, self._now = state_folder / PLANS_FOLDER, now

    def check(self, plan: Plan) -> bool:
        """Return if ``plan`` is approved; else raise, after writing down one that is new.

        Raises:
            AwaitingApprovalError: nobody has decided yet; ``.args`` as usual.
            RefusedError: it was rejected.
            IntegrityError: the decision cannot be read.
        """
        decision = self._decision(plan.sha256)
        if decision.get("decision") == APPROVED:
            return True
        if decision.get("decision") == REJECTED:
            raise RefusedError(
                f"this site rejected the plan {plan.short}",
                hint="ask the site what would be agreed to; a changed setting makes another plan",
            )
        self.add(plan)
        raise AwaitingApprovalError(
            f"the plan {plan.short} waits for this site's approval",
            hint=f"at the site: instahide node plan show NODE {plan.short}, then approve or reject",
        )

    def knows(self, plan: Plan) -> bool:
        """Whether it was written down before."""
        return self._path(plan.sha256).exists()

    def add(self, plan: Plan) -> None:
        """Write a plan down as waiting, unless it is known.

        Raises AwaitingApprovalError if too many wait already.
        """
        if self.knows(plan):
            return
        if len(self.pending()) >= MAX_PENDING:
            raise AwaitingApprovalError(
                f"the plan {plan.short} cannot be looked at yet: {MAX_PENDING} others wait at this site",
                hint="at the site: instahide node plan list NODE, then approve or reject what waits",
            )
        self._folder.mkdir(mode=0o700, exist_ok=True)
        table = {"plan": plan.to_mapping(), "sha256": plan.sha256, "seen": self._stamp()}
        atomic_write_text(self._path(plan.sha256), json.dumps(table, indent=2) + "\n", mode=0o600)

    def decide(self, plan: Plan, decision: str, *, by: str) -> PlanEntry:
        """Approve or reject a plan of the book, or change what was decided; the new entry."""
        assert decision in (APPROVED, REJECTED), decision
        table = {"sha256": plan.sha256, "decision": decision, "by": by, "at": self._stamp()}
        path = self._folder / f"{plan.sha256}{_DECISION}"
        atomic_write_text(path, json.dumps(table, indent=2) + "\n", mode=0o600)
        return self._entry(plan.sha256)

    def entries(self) -> list[PlanEntry]:
        """Every plan, the last seen first. Raises IntegrityError for a damaged one."""
        names = [path.name for path in self._folder.glob(f"*{_SUFFIX}") if path.name.count(".") == 1]
        found = [self._entry(name.removesuffix(_SUFFIX)) for name in names]
        return sorted(found, key=lambda entry: (entry.seen_at, entry.plan.sha256), reverse=True)

    def pending(self) -> set[str]:
        """Hashes of the plans that wait, by the names of the files: cheap enough to ask every second."""
        names = {path.name for path in self._folder.glob(f"*{_SUFFIX}") if path.name[0] != "."}
        decided = {name.removesuffix(_DECISION) for name in names if name.endswith(_DECISION)}
        return {name.removesuffix(_SUFFIX) for name in names if not name.endswith(_DECISION)} - decided

    def find(self, prefix: str) -> PlanEntry:
        """The one plan whose hash begins with ``prefix``; for "", the one that waits.

        Raises InvalidInputError if there is none or more than one.
        """
        entries = self.entries()
        if not prefix:
            found = [entry for entry in entries if entry.status == PENDING]
            what = "no plan waits" if not found else f"{len(found)} plans wait"
        else:
            if len(prefix) < _SHORTEST_PREFIX:
                raise InvalidInputError(f"{prefix!r} is too short", hint=f"give {SHORT} digits of the hash")
            found = [entry for entry in entries if entry.plan.sha256.startswith(prefix.lower())]
            what = f"{len(found) or 'no'} plans of this site begin with {prefix!r:.80}"
        if len(found) != 1:
            raise InvalidInputError(what, hint="`instahide node plan list NODE` shows their hashes")
        return found[0]

    def last_approved(self, *, other_than: Plan) -> PlanEntry | None:
        """The plan that was approved last, for comparison."""
        found = [
            entry
            for entry in self.entries()
            if entry.status == APPROVED and entry.plan.sha256 != other_than.sha256
        ]
        return max(found, key=lambda entry: entry.decided_at, default=None)

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}{_SUFFIX}"

    def _entry(self, sha256: str) -> PlanEntry:
        table = _read(self._path(sha256))
        try:
            plan, seen = Plan.from_mapping(table["plan"]), str(table["seen"])
        except (KeyError, InvalidInputError) as error:
            raise IntegrityError(f"the plan {sha256[:SHORT]} is damaged", hint=_MEND) from error
        if plan.sha256 != sha256:
            raise IntegrityError(f"the plan {sha256[:SHORT]} does not have its hash", hint=_MEND)
        decision = self._decision(sha256)
        return PlanEntry(
            plan=plan,
            seen_at=seen,
            status=decision.get("decision", PENDING),
            by=decision.get("by", ""),
            decided_at=decision.get("at", ""),
        )

    def _decision(self, sha256: str) -> dict[str, str]:
        path = self._folder / f"{sha256}{_DECISION}"
        if not path.exists():
            return {}
        table = _read(path)
        good = table.get("sha256") == sha256 and table.get("decision") in (APPROVED, REJECTED)
        if not good or not all(isinstance(table.get(key), str) for key in ("by", "at")):
            raise IntegrityError(f"the decision on plan {sha256[:SHORT]} is damaged", hint=_MEND)
        return table

    def _stamp(self) -> str:
        return self._now().astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


_MEND: Final = "delete its files in state/plans and decide anew"


def _read(path: Path) -> dict[str, Any]:
    try:
        table: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError("a file in state/plans cannot be read", hint=_MEND) from error
    if not isinstance(table, dict):
        raise IntegrityError("a file in state/plans is damaged", hint=_MEND)
    return table
