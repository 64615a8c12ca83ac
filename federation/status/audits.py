"""What attacks found out about a run, where somebody put their results into its folder.

    STUDY/runs/NAME/audit/...               what `instahide attack run ... --out` wrote, anywhere below
    STUDY/runs/NAME/audit/round-7/...       the same, of the model (or updates) of round 7

Results of numbered rounds make a curve: leak against rounds. Nothing here runs an attack; where
there is no result, nothing was measured. The files are read as JSON and not with
:mod:`instahide.attacks`, which brings torch along: a supervisor stays small.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..messages import MAX_NAME, MAX_TEXT, one_line

AUDIT_FOLDER: Final = "audit"
RESULT_FILE: Final = "result.json"
RESULT_FORMAT: Final = "instahide-attack-result/1"
MOST_RESULTS: Final = 200
_MOST_BYTES: Final = 4 << 20
_ROUND = re.compile(r"round-0*(\d{1,9})")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """An attack's first figure (one with an interval, if there is one) and its verdict.

    ``round`` is None where the result belongs to no numbered round; ``figure`` and ``interval`` are None
    where nothing was measured; ``leaked`` is None where it could not be decided.
    """

    attack: str
    round: int | None
    measure: str
    figure: float | None
    interval: tuple[float, float] | None
    verdict: str
    leaked: bool | None

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "interval": None if self.interval is None else list(self.interval)}


def read_findings(run_folder: Path) -> tuple[list[Finding], int]:
    """The findings of a run, by attack and round, and how many files were no results."""
    root = run_folder / AUDIT_FOLDER
    files = sorted(root.rglob(RESULT_FILE))[:MOST_RESULTS] if root.is_dir() else []
    found = [_read(file, root) for file in files]
    findings = [finding for finding in found if finding is not None]
    findings.sort(key=lambda finding: (finding.attack, -1 if finding.round is None else finding.round))
    return findings, len(found) - len(findings)


def leak_curves(findings: Sequence[Finding]) -> dict[str, list[tuple[int, float]]]:
    """ "attack: measure" → (round, figure), of the findings that belong to a round."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for finding in findings:
        if finding.round is not None and finding.figure is not None:
            name = f"{finding.attack}: {finding.measure}"
            curves.setdefault(name, []).append((finding.round, finding.figure))
    return curves


def latest_findings(findings: Sequence[Finding]) -> list[Finding]:
    """The last round's finding of each attack and measure."""
    return list({(finding.attack, finding.measure): finding for finding in findings}.values())


def _read(file: Path, root: Path) -> Finding | None:
    try:
        if file.stat().st_size > _MOST_BYTES:
            return None
        values: Any = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != RESULT_FORMAT or not isinstance(values["metrics"], dict):
            return None
        name = _headline(values["metrics"], values["intervals"])
        interval = _pair(values["intervals"].get(name))
        leaked = values["leaked"]
        return Finding(
            attack=one_line(str(values["attack"] or values["name"]), MAX_NAME),
            round=_round_of(file, root),
            measure=one_line(name.replace("_", " "), MAX_NAME) or "nothing measured",
            figure=_finite(values["metrics"].get(name)),
            interval=interval,
            verdict=one_line(str(values["verdict"] or "no verdict was reached"), MAX_TEXT),
            leaked=leaked if isinstance(leaked, bool) else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _headline(metrics: dict[str, Any], intervals: dict[str, Any]) -> str:
    return str(next((name for name in metrics if name in intervals), next(iter(metrics), "")))


def _round_of(file: Path, root: Path) -> int | None:
    for part in file.relative_to(root).parts[:-1]:
        if match := _ROUND.fullmatch(part):
            return int(match[1])
    return None


def _pair(limits: Any) -> tuple[float, float] | None:
    low, high = limits if isinstance(limits, list) and len(limits) == 2 else (None, None)
    low, high = _finite(low), _finite(high)
    return None if low is None or high is None else (low, high)


def _finite(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None
