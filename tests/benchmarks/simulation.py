"""What a simulated federation costs as it grows: seconds a round, processor time a site-round, peak memory.

    python -m tests.benchmarks.simulation [--hospitals 10,50,100] [--secure 10,50,100] [--json FILE]

Each size is a process of its own (peak memory is then its own): hospitals of about 40 of scikit-learn's
digits train ``mlp`` (85,002 weights) for one epoch a round, in one process and one thread, on plain images;
then the same with secure aggregation, 2 to 255 hospitals, whose session is set up in round 1. Round 1 is
reported apart: it makes every hospital's ledgers and log. Processor seconds are user plus system; wall
seconds hold what the disk takes for fsync. ``--scratch /dev/shm`` leaves the disk out.

These are figures of this computer's arithmetic. Neither bytes on a wire nor anybody's waiting is in them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from federation.demo.data import digits
from federation.simulation.arms import build_arms
from federation.simulation.population import Heterogeneity, spread
from federation.simulation.study import StudySettings, run_study

COLUMNS = (
    "hospitals",
    "secure",
    "round 1 CPU s",
    "later CPU s",
    "ms a site",
    "rounds/s",
    "peak MiB",
    "MiB up",
)


def measure(hospitals: int, secure: bool, rounds: int, model: str, scratch: Path | None) -> dict[str, Any]:
    """One run in this process; figures a round."""
    law = Heterogeneity(num_hospitals=hospitals, images_per_hospital=40)
    settings = {"model": model, "num-server-rounds": rounds, "secure-aggregation": secure}
    arms = build_arms(settings, [], [], num_hospitals=hospitals)
    stamps: list[tuple[float, float]] = []

    def stamp(*_: object) -> None:
        spent = os.times()
        stamps.append((time.perf_counter(), spent.user + spent.system))

    population = spread(digits(), law)
    study = StudySettings(heterogeneity=law, scratch=scratch)
    [arm] = run_study(population, arms, study, stamp)["arms"]
    if "failed" in arm:
        raise SystemExit(f"{hospitals} hospitals: {arm['failed']}")
    gaps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(stamps)]
    wall, processor = [each[0] for each in gaps], [each[1] for each in gaps]
    later = median(processor[1:])
    return {
        "hospitals": hospitals,
        "secure-aggregation": secure,
        "model": model,
        "first-round": {"seconds": wall[0], "processor-seconds": processor[0]},
        "later-rounds": {"seconds": median(wall[1:]), "processor-seconds": later},
        "processor-seconds-per-site-round": later / hospitals,
        "peak-memory-mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "mib-up-per-site-round": arm["bytes-received"] / hospitals / rounds / 2**20,
        "accuracy": arm["rounds"][-1]["accuracy"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hospitals", default="10,50,100,500,1000")
    parser.add_argument("--secure", default="10,50,100,200,255")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("HOSPITALS", "SECURE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        hospitals, secure = int(options.one[0]), options.one[1] == "true"
        print(json.dumps(measure(hospitals, secure, options.rounds, options.model, options.scratch)))
        return
    cases = [(size, "false") for size in options.hospitals.split(",") if size]
    cases += [(size, "true") for size in options.secure.split(",") if size]
    print(" | ".join(COLUMNS), flush=True)
    results = []
    for case in cases:
        same = ["--rounds", str(options.rounds), "--model", options.model]
        same += ["--scratch", str(options.scratch)] if options.scratch else []
        command = [sys.executable, "-m", "tests.benchmarks.simulation", *same, "--one", *case]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(ended.stderr)
        found = json.loads(ended.stdout)
        results.append(found)
        print(" | ".join(_row(found)), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def _row(found: dict[str, Any]) -> list[str]:
    later = found["later-rounds"]
    return [
        str(found["hospitals"]),
        str(found["secure-aggregation"]).lower(),
        f"{found['first-round']['processor-seconds']:.2f}",
        f"{later['processor-seconds']:.2f}",
        f"{1000 * found['processor-seconds-per-site-round']:.1f}",
        f"{1 / later['seconds']:.3f}",
        f"{found['peak-memory-mib']:.0f}",
        f"{found['mib-up-per-site-round']:.3f}",
    ]


if __name__ == "__main__":
    main()
