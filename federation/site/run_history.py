"""How often this site has answered each run: what the policy's limits on rounds are held against.

A file of counts, ``runs.json`` in the state folder, replaced atomically. A request is written
down before it is worked on, so a worker killed half way has counted it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from instahide.atomic import atomic_write_text
from instahide.errors import IntegrityError

from ..messages import TRAIN, RoundRequest
from .policy import SiteFacts

HISTORY_NAME: Final = "runs.json"
HISTORY_VERSION: Final = 1


@dataclass(kw_only=True)
class RunCounts:
    """Of one run: rounds trained, the last one's number, how many did not follow on, models evaluated."""

    rounds_served: int = 0
    last_round: int = 0
    repeats: int = 0
    evaluations_served: int = 0


class RunHistory:
    """The counts of every run this site has answered.

    Raises:
        IntegrityError: the file is there and cannot be read: limits cannot be kept without it.
    """

    def __init__(self, state_folder: Path) -> None:
        self._path = state_folder / HISTORY_NAME
        self._runs = _read(self._path)

    def facts(self, request: RoundRequest, *, num_examples: int) -> SiteFacts:
        """What the policy needs to know to judge ``request``."""
        counts = self._runs.get(request.run_name, RunCounts())
        others = len(self._runs.keys() - {request.run_name})
        return SiteFacts(num_examples=num_examples, other_runs=others, **asdict(counts))

    def rounds_trained(self) -> dict[str, int]:
        """Run name → rounds trained, of every run this site has answered."""
        return {name: counts.rounds_served for name, counts in self._runs.items()}

    def record(self, request: RoundRequest) -> None:
        """Count ``request``, on disk, before it is worked on."""
        counts = self._runs.setdefault(request.run_name, RunCounts())
        if request.kind == TRAIN:
            counts.rounds_served += 1
            counts.repeats += request.server_round <= counts.last_round
            counts.last_round = max(counts.last_round, request.server_round)
        else:
            counts.evaluations_served += 1
        runs = {name: asdict(counts) for name, counts in self._runs.items()}
        text = json.dumps({"format-version": HISTORY_VERSION, "runs": runs}, indent=2)
        atomic_write_text(self._path, text + "\n", mode=0o600)


def _read(path: Path) -> dict[str, RunCounts]:
    if not path.exists():
        return {}
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content["format-version"] != HISTORY_VERSION:
            raise ValueError(content["format-version"])
        runs = {str(name): RunCounts(**counts) for name, counts in content["runs"].items()}
        if not all(
            type(count) is int and count >= 0 for run in runs.values() for count in asdict(run).values()
        ):
            raise ValueError("counts")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(
            f"{HISTORY_NAME} cannot be read, so limits on rounds cannot be kept",
            hint="restore it from a backup; without it every run starts from zero again",
        ) from error
    return runs
