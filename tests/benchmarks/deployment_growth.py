"""What the real deployment costs as hospitals are added: seconds a round and resident memory by process.

    python -m tests.benchmarks.deployment_growth [--hospitals 3,6,10] [--rounds 4] [--json FILE]

Every hospital is its SuperNode, SuperExec and site worker, over TLS through the gateway, all on this one
machine and its cores; so seconds hold what the hospitals take from each other, as they would not on
machines of their own. ``small-cnn`` on scikit-learn's digits, one local epoch, no evaluation; first rounds
are left out of the seconds. Processor seconds are those of a whole run, its start and end included, over its
rounds. Memory is read at the end of the last run: the median over the hospitals, and all of the
coordinator's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from federation.demo.data import prepare
from federation.demo.hospitals import running_federation, wait_until_connected
from federation.demo.settings import DemoSettings

from .federation import _one_run

PROTECTIONS: dict[str, dict[str, Any]] = {
    "fedavg": {"secure-aggregation": False},
    "secure-aggregation": {"secure-aggregation": True, "reconstruction-threshold": 0},
}


def measure(count: int, rounds: int) -> dict[str, Any]:
    """One federation of ``count`` hospitals, started and ended."""
    names = tuple(f"hospital-{number:02d}" for number in range(1, count + 1))
    data = prepare(None, names, concentration=10.0, split_seed=7)
    found: dict[str, Any] = {"hospitals": count, "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        settings = DemoSettings(
            out=Path(folder), num_server_rounds=rounds, local_epochs=1, round_deadline=300.0
        )
        with running_federation(settings, data, say=lambda _: None) as federation:
            wait_until_connected(federation)
            for name, extra in PROTECTIONS.items():
                before = _processor()
                seconds, beyond = _one_run(settings, federation, name, extra)
                after = _processor()
                found[name] = {
                    "processor-seconds-a-round": {
                        kind: round((after[kind] - before.get(kind, 0.0)) / rounds, 3) for kind in after
                    },
                    "seconds": statistics.median(seconds),
                    "beyond-training": statistics.median(beyond),
                    "rounds": [round(each, 2) for each in seconds],
                }
            found["memory-mib"] = _memory(count)
    return found


KNOWN = ("site.worker", "flower_processes.node", "flower-superexec", "flower-superlink", "gateway")


def _by_kind(read: Callable[[psutil.Process], float]) -> dict[str, list[float]]:
    """A figure of each of this process's descendants, by what they are."""
    kinds: dict[str, list[float]] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            words, value = " ".join(process.cmdline()), read(process)
        except psutil.Error:
            continue
        kinds.setdefault(next((name for name in KNOWN if name in words), "other"), []).append(value)
    return kinds


def _processor() -> dict[str, float]:
    """Processor seconds so far of those that stay up during a run."""
    kinds = _by_kind(lambda process: process.cpu_times().user + process.cpu_times().system)
    return {kind: sum(values) for kind, values in kinds.items() if kind != "other"}


def _memory(count: int) -> dict[str, Any]:
    """Resident MiB by kind of process."""
    kinds = _by_kind(lambda process: process.memory_info().rss / 2**20)
    by_kind = {
        kind: {"processes": len(sizes), "median": round(statistics.median(sizes)), "sum": round(sum(sizes))}
        for kind, sizes in sorted(kinds.items())
    }
    total = sum(sum(sizes) for sizes in kinds.values())
    return {"by-process": by_kind, "sum": round(total), "sum-per-hospital": round(total / count)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hospitals", default="3,6,10")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for count in map(int, options.hospitals.split(",")):
        found = measure(count, options.rounds)
        results.append(found)
        print(json.dumps(found), flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
