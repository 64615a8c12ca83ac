"""What a site's ledger of differential privacy adds up to, for people and for programs.

An epsilon of infinity (nothing is promised) is ``None``. Runs that trained without differential privacy are
listed by name: the epsilon says nothing about what their updates showed, nor about encodings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..accounting import PrivacyCap, PrivacyEvent, epsilon_of
from ..privacy_ledger import LedgerEntry
from .policy import Policy

UNIT = "one training image, add or remove one"


def privacy_report(
    entries: Sequence[LedgerEntry], policy: Policy, rounds_trained: Mapping[str, int]
) -> dict[str, Any]:
    """The site's total, its cap, and each run; JSON values under kebab-case keys.

    Args:
        entries: the ledger's.
        policy: names the cap and the delta.
        rounds_trained: run name → rounds of every run this site ever trained in.
    """
    events = [entry.event for entry in entries]
    cap = (
        None
        if policy.max_epsilon is None
        else PrivacyCap(max_epsilon=policy.max_epsilon, delta=policy.max_delta)
    )
    held = None if cap is None else cap.epsilon(events)
    by_run: dict[str, list[LedgerEntry]] = {}
    for entry in entries:
        by_run.setdefault(entry.event.run_name, []).append(entry)
    return {
        "unit": UNIT,
        "delta": policy.max_delta,
        "epsilon-spent": _finite(epsilon_of(events, policy.max_delta)),
        "max-epsilon": policy.max_epsilon,
        "epsilon-against-cap": None if held is None else _finite(held),
        "epsilon-remaining": None if cap is None or held is None else max(0.0, cap.max_epsilon - held),
        "runs": [_run(name, own, policy.max_delta) for name, own in by_run.items()],
        "runs-without-differential-privacy": sorted(
            name for name, rounds in rounds_trained.items() if rounds and name not in by_run
        ),
    }


def _run(name: str, entries: Sequence[LedgerEntry], delta: float) -> dict[str, Any]:
    events: list[PrivacyEvent] = [entry.event for entry in entries]
    return {
        "run-name": name,
        "epsilon": _finite(epsilon_of(events, delta)),
        "rounds-charged": len(events),
        "steps": sum(event.num_steps for event in events),
        "noise-multipliers": sorted({event.noise_multiplier for event in events}),
        "last-charge": entries[-1].made_at,
    }


def in_words(report: Mapping[str, Any]) -> str:
    """The report for people, a line a fact."""
    lines = [
        f"protected: {report['unit']}; from whoever sees every update that left",
        f"spent over all runs: epsilon {_shown(report['epsilon-spent'])} at delta {report['delta']:g}",
    ]
    if report["max-epsilon"] is None:
        lines.append("cap: none (max-epsilon is not set in policy.toml)")
    else:
        lines.append(
            f"cap: {report['max-epsilon']:g}, of which {_shown(report['epsilon-against-cap'])} counts as "
            f"used and {report['epsilon-remaining']:.3g} is left (a bound that holds whatever runs come "
            "next, hence above the figure for what was spent)"
        )
    for run in report["runs"]:
        noise = ", ".join(f"{value:g}" for value in run["noise-multipliers"])
        lines.append(
            f"  {run['run-name']}: epsilon {_shown(run['epsilon'])}, {run['rounds-charged']} rounds charged, "
            f"{run['steps']:,} steps at noise multiplier {noise}, last {run['last-charge']}"
        )
    if without := report["runs-without-differential-privacy"]:
        lines.append(f"no epsilon covers these runs, which trained without: {', '.join(without)}")
    return "\n".join(lines)


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _shown(epsilon: float | None) -> str:
    return "above 30, which promises nothing" if epsilon is None else f"{epsilon:.3g}"
