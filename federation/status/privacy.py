"""Epsilon of a run with differential privacy, read beside the run that spends it.

    client    the coordinator's ledger in the run's folder: one figure for the run
    example   what each site told with its updates, where its policy lets it

A run without differential privacy has no rows: encodings have no epsilon. The ledger is opened
read-only and only where its file has changed, because a charge waits while somebody reads.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instahide.errors import InstaHideError

from .run_progress import RunProgress


@dataclass(frozen=True, kw_only=True)
class EpsilonSpent:
    """``epsilon`` is None beyond 30 (nothing useful is promised); ``problem`` says why there is no figure."""

    protects: str
    whose: str
    epsilon: float | None
    delta: float
    problem: str = ""


class RunPrivacy:
    """The rows of one run; the accounting is done again only where the ledger has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: tuple[int, int] | None = None
        self._rows: list[EpsilonSpent] = []

    def rows(self, run: RunProgress) -> list[EpsilonSpent]:
        """What was spent so far; [] for a run without differential privacy."""
        unit = run.settings.get("differential-privacy", "none")
        delta = run.settings.get("target-delta")
        if unit == "none" or not isinstance(delta, float):
            return []
        if unit == "example":
            return [
                EpsilonSpent(protects="one training image", whose=site, epsilon=epsilon, delta=delta)
                for site, epsilon in sorted(run.epsilon_told.items())
            ]
        return self._of_the_run(run.settings, delta)

    def _of_the_run(self, settings: dict[str, Any], delta: float) -> list[EpsilonSpent]:
        from ..privacy_ledger import LEDGER_NAME

        try:
            stamp = (self._folder / LEDGER_NAME).stat()
        except OSError:
            return []
        seen = (stamp.st_mtime_ns, stamp.st_size)
        if seen != self._seen:
            self._rows = [_of_one_site(self._folder, settings, delta)]
            self._seen = seen
        return self._rows


def _of_one_site(folder: Path, settings: dict[str, Any], delta: float) -> EpsilonSpent:
    epsilon, problem = None, ""
    try:
        spent = epsilon_of_run(folder, settings, delta)
        epsilon = spent if math.isfinite(spent) else None
    except (InstaHideError, OSError, ValueError, KeyError, TypeError) as error:
        problem = error.message if isinstance(error, InstaHideError) else "the run's files cannot be read"
    return EpsilonSpent(
        protects="one whole site", whose="the run", epsilon=epsilon, delta=delta, problem=problem
    )


def epsilon_of_run(folder: Path, settings: dict[str, Any], delta: float) -> float:
    """As the model card will state it: the sum of all releases so far."""
    from ..accounting import epsilon_of
    from ..config import RunConfig
    from ..hidden_sum import hidden_sum
    from ..privacy_ledger import LEDGER_NAME, read_entries

    events = [entry.event for entry in read_entries(folder / LEDGER_NAME)]
    config = RunConfig.from_mapping(settings)
    if not config.secure_aggregation or not events:
        return epsilon_of(events, delta)
    agreed = hidden_sum(config, _num_weights(folder / "initial.safetensors"))
    assert agreed.noise is not None
    return agreed.noise.epsilon(agreed.plan, len(events), delta)


def _num_weights(path: Path) -> int:
    """Numbers in a safetensors file, from its header: eight bytes of length, then JSON with shapes."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
