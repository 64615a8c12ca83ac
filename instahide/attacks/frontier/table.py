"""The frontier as numbers: one row a defence, kept so that a run can go on where it stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...atomic import atomic_write_text
from ...errors import IntegrityError, InvalidInputError
from ...training_config import TrainingConfig
from ...training_device import at_most_threads
from .client_level import MakeClientNoise
from .data import FrontierData
from .defences import Defence
from .leaks import Leak, Question, exposure, membership_of_encodings
from .model_leaks import membership_of_model, update_inversion
from .recovery_leak import recovery_of_encodings
from .training import TARGET_DELTA, TrainedDefence, fitted, train_under

FORMAT = "instahide-frontier/2"
QUESTIONS: dict[str, Question] = {
    "recovery": recovery_of_encodings,
    "membership": membership_of_encodings,
    "model": membership_of_model,
    "update": update_inversion,
}
SAME_MODEL = ("model",)
"""Questions about the trained model alone: one answer for all defences that train alike."""
Progress = Callable[..., None]


@dataclass(frozen=True)
class FrontierRow:
    """One defence: accuracy in each inference mode, leaks, epsilon of one ``unit`` if it has one, cost."""

    name: str
    words: str
    accuracy: dict[str, float | None]
    accuracy_interval: tuple[float, float]
    epsilon: float | None
    leaks: dict[str, Leak | None] = field(default_factory=dict)
    train_cpu_seconds: float = 0.0
    attack_cpu_seconds: float = 0.0
    approach: str = "baselines"
    unit: str = "image"

    @property
    def worst(self) -> float:
        """The largest exposure over the questions, 0 to 1."""
        return max(map(exposure, self.leaks.values()), default=0.0)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FrontierRow:
        """The row that ``asdict`` wrote."""
        leaks = {
            name: None if leak is None else Leak(**{**leak, "interval": _pair(leak["interval"])})
            for name, leak in values["leaks"].items()
        }
        limits = values["accuracy_interval"]
        return cls(**{**values, "leaks": leaks, "accuracy_interval": (limits[0], limits[1])})


def run_frontier(
    data: FrontierData,
    defences: Sequence[Defence],
    config: TrainingConfig,
    file: Path,
    *,
    fingerprint: dict[str, Any],
    processes: int = 1,
    make_site_noise: MakeClientNoise | None = None,
    progress: Progress | None = None,
) -> list[FrontierRow]:
    """Measure every defence; rows already in ``file`` are kept, and every new one is added to it at once.

    Args:
        fingerprint: what the rows depend on (data, split, training); a file made otherwise is refused.
        processes: rows measured side by side, each on one thread.
        make_site_noise: as for :func:`.training.train_under`; other processes get it, so it can be pickled.
        progress: called as ``progress(done, total, text)``.

    Raises:
        InvalidInputError: ``file`` belongs to another run.
        IntegrityError: ``file`` is not readable.
    """
    rows = {row.name: row for row in _read(file, fingerprint)}
    missing = [defence for defence in defences if defence.name not in rows]
    for group in _measured(_alike(missing), data, config, processes, make_site_noise):
        rows.update({row.name: row for row in group})
        _write(file, fingerprint, [rows[item.name] for item in defences if item.name in rows])
        if progress is not None:
            progress(len(rows), len(defences), group[-1].name)
    return [rows[defence.name] for defence in defences]


def _alike(defences: Sequence[Defence]) -> list[list[Defence]]:
    """Defences that train in the same way together: hiding single updates does not change their sum."""
    groups: dict[Defence, list[Defence]] = {}
    for defence in defences:
        same_training = defence if defence.noise else replace(defence, summed=False)
        groups.setdefault(replace(same_training, name="", words="", approach="baselines"), []).append(defence)
    return list(groups.values())


def _measured(
    groups: Sequence[Sequence[Defence]],
    data: FrontierData,
    config: TrainingConfig,
    processes: int,
    make_site_noise: MakeClientNoise | None,
) -> Iterator[list[FrontierRow]]:
    """Rows as they are finished; Ctrl-C ends the workers too."""
    if processes == 1 or len(groups) < 2:
        yield from (measure(group, data, config, make_site_noise) for group in groups)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its threads
    pool = ProcessPoolExecutor(min(processes, len(groups)), context, initializer=_start_worker)
    try:
        waiting = [pool.submit(measure, group, data, config, make_site_noise) for group in groups]
        yield from (done.result() for done in as_completed(waiting))
    finally:
        workers = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()


def _start_worker() -> None:
    """Leave Ctrl-C to the parent; end with it, also where it was killed and could end nobody."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def measure(
    alike: Sequence[Defence],
    data: FrontierData,
    config: TrainingConfig,
    make_site_noise: MakeClientNoise | None = None,
) -> list[FrontierRow]:
    """Train once for defences that train alike and ask every question of each, on one thread."""
    with at_most_threads(1):
        trained = train_under(alike[0], data, config, make_site_noise)
        rows: list[FrontierRow] = []
        for defence in alike:
            rows.append(_row(defence, trained, data, rows[0] if rows else None))
        return rows


def _row(
    defence: Defence, trained: TrainedDefence, data: FrontierData, first: FrontierRow | None
) -> FrontierRow:
    asked = fitted(defence, data.members)
    started = time.process_time()
    leaks = {
        name: first.leaks[name] if first and name in SAME_MODEL else question(asked, trained, data)
        for name, question in QUESTIONS.items()
    }
    return FrontierRow(
        defence.name,
        defence.words,
        _accuracies(trained),
        trained.report.plain.accuracy_interval,
        trained.epsilon,
        leaks,
        trained.cpu_seconds,
        time.process_time() - started,
        defence.approach,
        defence.unit,
    )


def _accuracies(trained: TrainedDefence) -> dict[str, float | None]:
    report = trained.report
    modes = {"plain": report.plain, "one_view": report.encoded_once, "ten_views": report.encoded_average}
    return {name: None if mode is None else mode.accuracy for name, mode in modes.items()}


def _read(file: Path, fingerprint: dict[str, Any]) -> list[FrontierRow]:
    if not file.exists():
        return []
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(values["format"])
        made_for, rows = values["fingerprint"], [FrontierRow.from_dict(row) for row in values["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{file} is not a frontier: {error}", hint="remove it and run again") from error
    if made_for != json.loads(json.dumps(fingerprint)):
        raise InvalidInputError(
            f"{file} holds the frontier of other data or settings", hint="give a new folder"
        )
    return rows


def _write(file: Path, fingerprint: dict[str, Any], rows: Sequence[FrontierRow]) -> None:
    document = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "target_delta": TARGET_DELTA,
        "rows": [asdict(row) for row in rows],
    }
    atomic_write_text(file, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _pair(limits: Sequence[float] | None) -> tuple[float, float] | None:
    return None if limits is None else (limits[0], limits[1])
