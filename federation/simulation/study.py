"""A what-if study: each arm trained over the same simulated hospitals, measured on one test part.

The rounds, checks, aggregation, policies, ledgers, encodings, training, masks and signatures are the
product's. What is **not** simulated, :data:`NOT_SIMULATED`, stands in every report: seconds and bytes of a
study are those of this computer's arithmetic, not of a federation. The accuracies are of the global models
of all rounds on test images that no hospital trains on, which no coordinator of a real run could measure.
"""

from __future__ import annotations

import importlib.util
import math
import os
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from instahide.errors import FederationError, InvalidInputError
from instahide.evaluation import evaluate
from instahide.images import ImageSet
from instahide.models import ModelSpec, build_from_spec
from instahide.training_device import at_most_threads

from ..accounting import PrivacyEvent, epsilon_of
from ..coordinator import rounds
from ..messages import Arrays, RoundRequest, SiteReply
from ..privacy_ledger import LEDGER_NAME, PrivacyLedger
from ..site.weights import load_weights
from ..status.privacy import epsilon_of_run
from .arms import Arm
from .grid import Dropout, InThisProcess, Players, SimulatedClock, SimulatedGrid
from .population import Heterogeneity, Population
from .processes import ProcessPlayers
from .run_folder import prepare_folder
from .sites import EXPOSURE_LEDGER, STUDY_POLICY, SimulatedSites, quiet_sites

NOT_SIMULATED: Final = (
    "No network, TLS, gateway or SuperLink: no latency, bandwidth, timeout, retry or order of arrival.",
    "No separate machines: hospitals take turns on this computer, and none is slower than another.",
    "No people: plans need no approval, keys are made on the spot, nobody revokes or restarts anything.",
    "A hospital that drops out is back in the next round with all its state.",
    "Bytes are those of weights and masked records, without the transport's own.",
    "All images are of one data set; those of real hospitals differ in more than classes and sizes.",
)
MOST_TEST_IMAGES: Final = 2000
BACKENDS: Final = ("local", "ray")
Progress = Callable[..., None]
Use = Callable[[Players, dict[int, str]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """How a study is carried out; which runs it compares is in its arms.

    ``num_workers`` 1 trains in this process; more start as many processes beside it. ``scratch`` is where the
    hospitals' state is while it lasts, by default the system's temporary folder; every step is on the disk
    before a reply leaves, as in a real run, so a slow disk is felt.
    """

    heterogeneity: Heterogeneity
    dropout: float = 0.0
    num_workers: int = 1
    backend: str = "local"
    policy: str = STUDY_POLICY
    scratch: Path | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise InvalidInputError(f"--dropout is {self.dropout:g}", hint="from 0 to below 1")
        if not 1 <= self.num_workers <= 1024:
            raise InvalidInputError(f"--workers is {self.num_workers}", hint="from 1 to 1,024")
        if self.backend not in BACKENDS:
            raise InvalidInputError(
                f"--backend is {self.backend!r:.50}", hint=f"one of {', '.join(BACKENDS)}"
            )


def run_study(
    population: Population,
    arms: list[Arm],
    settings: StudySettings,
    progress: Progress = lambda done, total=None, text="": None,
) -> dict[str, Any]:
    """Carry out every arm; plain JSON values. An arm that fails is recorded with its reason.

    All files are in a temporary folder that is gone when this returns or raises.
    """
    if settings.backend == "ray" and importlib.util.find_spec("ray") is None:
        raise InvalidInputError(
            "Ray is not installed", hint="pip install 'instahide-fl[simulation]', or use --backend local"
        )
    for arm in arms:
        if settings.backend == "ray" and arm.config.secure_aggregation:
            raise InvalidInputError(
                f"arm {arm.name}: session keys live in one process, and Flower's actors take turns",
                hint="use --backend local",
            )
    test = population.images.subset(population.test[:MOST_TEST_IMAGES])
    results: dict[str, Any] = {
        "hospitals": population.facts(),
        "heterogeneity": asdict(settings.heterogeneity),
        "dropout": settings.dropout,
        "backend": settings.backend,
        "workers": settings.num_workers,
        "not-simulated": list(NOT_SIMULATED),
        "arms": [],
    }
    total = sum(arm.config.num_server_rounds for arm in arms)
    done = 0
    with (
        TemporaryDirectory(prefix="instahide-simulation-", dir=settings.scratch) as scratch,
        quiet_sites(),
        at_most_threads(1),
    ):
        shared = Path(scratch) / "population"
        population.save(shared)
        for arm in arms:

            def told(server_round: int, before: int = done, name: str = arm.name) -> None:
                progress(before + server_round, total, f"arm {name}, rounds")

            results["arms"].append(_one_arm(population, shared, arm, settings, test, Path(scratch), told))
            done += arm.config.num_server_rounds
    results["peak-memory-mib"] = _peak_memory()
    return results


def _one_arm(
    population: Population,
    shared: Path,
    arm: Arm,
    settings: StudySettings,
    test: ImageSet,
    scratch: Path,
    told: Callable[[int], None],
) -> dict[str, Any]:
    folder = scratch / arm.name
    names, measured = population.names, _Accuracies(arm, test)
    facts: dict[str, Any] = {}

    def watch(server_round: int, arrays: Arrays) -> None:
        told(server_round)
        measured.measure(server_round, arrays)

    def use(players: Players, lines: dict[int, str]) -> dict[str, Any]:
        shape, classes = population.images.image_shape, population.images.class_names or ()
        sizes = {number: len(rows) for number, rows in enumerate(population.training, start=1)}
        config = prepare_folder(
            arm.config, folder / "coordinator", names, lines, classes, shape, num_examples=sizes
        )
        dropout = Dropout(probability=settings.dropout, seed=settings.heterogeneity.seed)
        grid = SimulatedGrid(players, list(names), dropout=dropout, watch=watch)
        try:
            result = rounds.run(config, grid, clock=SimulatedClock())
            watch(config.num_server_rounds, result.weights)
        finally:
            facts.update(_traffic(grid))
        return {"rounds": result.rounds, "settings": config.to_mapping()}

    began, processor_began = time.perf_counter(), _processor_seconds()
    outcome: dict[str, Any] = {"name": arm.name, "changed": dict(arm.changed)}
    try:
        done = _played(shared, folder, settings, population, use)
    except FederationError as error:
        outcome |= {"failed": error.message, "hint": error.hint}
        done = {}
    seconds, processor = time.perf_counter() - began, _processor_seconds() - processor_began
    rows = done.get("rounds", [])
    outcome["rounds"] = [
        {"round": number, **values, "sites": _sites(rows, number)} for number, values in measured.rows.items()
    ]
    outcome |= facts | {"seconds": round(seconds, 3), "processor-seconds": round(processor, 3)}
    trained = sum(row["sites"] or 0 for row in outcome["rounds"])
    if trained:
        outcome["processor-seconds-per-site-round"] = round(processor / trained, 4)
    if done:
        outcome["epsilon"] = _epsilon(folder, done["settings"], population)
        outcome["exposures"] = _exposures(folder, population)
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _played(
    shared: Path, folder: Path, settings: StudySettings, population: Population, use: Use
) -> dict[str, Any]:
    """``use`` with players of the hospitals and their identity keys, by the chosen backend."""
    numbers = list(population.names)
    if settings.backend == "ray":
        from ..flower_processes.simulation_runtime import with_flower_players

        return with_flower_players(
            shared, folder, numbers, num_workers=settings.num_workers, policy=settings.policy, use=use
        )
    if settings.num_workers > 1:
        with ProcessPlayers(
            shared, folder, num_processes=settings.num_workers, policy=settings.policy
        ) as players:
            return use(players, players.identity_lines(numbers))
    sites = SimulatedSites(folder, population.names, population.data, policy=settings.policy)

    def answer(number: int, request: RoundRequest) -> SiteReply:
        return sites.answer(
            number, request.kind, request.to_mapping(), request.arrays, request.aggregation_record
        )

    return use(InThisProcess(answer), {number: sites.identity_line(number) for number in numbers})


class _Accuracies:
    """Accuracy and loss of each global model on the test part, asked with plain images."""

    def __init__(self, arm: Arm, test: ImageSet) -> None:
        config = arm.config
        spec = ModelSpec(config.model, test.image_shape, test.num_classes, config.absolute_input)
        self._model, self._test = build_from_spec(spec, config.initialization_seed), test
        self.rows: dict[int, dict[str, float]] = {}

    def measure(self, server_round: int, arrays: Arrays) -> None:
        load_weights(self._model, arrays)
        plain = evaluate(self._model.eval(), self._test).plain
        self.rows[server_round] = {"accuracy": plain.accuracy, "loss": plain.loss}


def _traffic(grid: SimulatedGrid) -> dict[str, int]:
    return {
        "bytes-sent": grid.bytes_sent,
        "bytes-received": grid.bytes_received,
        "requests-answered": grid.num_answered,
        "dropped": grid.num_dropped,
    }


def _sites(rows: list[dict[str, Any]], number: int) -> int | None:
    return next((int(row["sites"]) for row in rows if row["round"] == number and "sites" in row), None)


def _epsilon(folder: Path, settings: dict[str, Any], population: Population) -> dict[str, Any] | None:
    """What differential privacy a run came to; None where it had none: encodings have no epsilon."""
    unit, delta = settings["differential-privacy"], settings["target-delta"]
    if unit == "none":
        return None
    if unit == "client":
        epsilon = epsilon_of_run(folder / "coordinator", settings, delta)
        return {"protects": "one whole hospital", "epsilon": _finite(epsilon), "delta": delta}
    spent = [
        PrivacyLedger(home / LEDGER_NAME).events()
        for number in population.names
        if (home := folder / f"site-{number}").exists()
    ]
    largest = max(spent, key=_steps_of)
    return {
        "protects": "one image, at the hospital that spent most",
        "epsilon": _finite(epsilon_of(largest, delta)),
        "delta": delta,
    }


def _finite(epsilon: float) -> float | None:
    """None beyond 30, where nothing useful is promised."""
    return epsilon if math.isfinite(epsilon) else None


def _steps_of(events: tuple[PrivacyEvent, ...]) -> float:
    """Σ steps · q² / σ²: what epsilon grows with, to first order."""
    return sum(event.num_steps * (event.sample_rate / event.noise_multiplier) ** 2 for event in events)


def _exposures(folder: Path, population: Population) -> dict[str, int] | None:
    """Most encodings one image was in, own and as partner, over the hospitals; None without encodings."""
    from instahide.exposure import ExposureLedger

    ledgers = [folder / f"site-{number}" / EXPOSURE_LEDGER for number in population.names]
    totals = [line for path in ledgers if path.exists() for line in ExposureLedger(path).summary()]
    if not any(line.max_own for line in totals):
        return None
    return {
        "most-own": max(line.max_own for line in totals),
        "most-partner": max(line.max_partner for line in totals),
    }


def _processor_seconds() -> float:
    """Of this process and of those that ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _peak_memory() -> dict[str, float]:
    """MiB resident at most: of this process, and of the largest of those that ended."""
    kilobytes = {
        "this-process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "largest-worker": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
    }
    return {name: round(value / 1024, 1) for name, value in kilobytes.items()}
