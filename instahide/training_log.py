"""The record of a run: ``metrics.csv`` and ``metrics.jsonl`` always, TensorBoard and a picture if installed.

Rows are flushed as epochs end, so a killed run leaves its record. A resumed run drops rows of
epochs it will repeat.
"""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from .atomic import atomic_path, atomic_write_text
from .training import EpochRecord

COLUMNS = tuple(field.name for field in fields(EpochRecord))


class TrainingLog:
    """Writes one row an epoch into ``folder``; use it as a context manager."""

    def __init__(self, folder: Path, *, history: Sequence[EpochRecord] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.history = list(history)
        self._csv_path, self._json_path = folder / "metrics.csv", folder / "metrics.jsonl"
        rows = [",".join(COLUMNS), *(_csv_row(record) for record in self.history)]
        atomic_write_text(self._csv_path, "\n".join(rows) + "\n")
        atomic_write_text(self._json_path, "".join(_json_row(record) for record in self.history))
        self._board = _tensorboard(folder / "tensorboard", purge_step=len(self.history))

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def record(self, record: EpochRecord) -> None:
        """Append one finished epoch to every log."""
        self.history.append(record)
        with self._csv_path.open("a", encoding="utf-8") as file:
            file.write(_csv_row(record) + "\n")
        with self._json_path.open("a", encoding="utf-8") as file:
            file.write(_json_row(record))
        if self._board is not None:
            for name in ("loss", "accuracy", "learning_rate"):
                self._board.add_scalar(f"train/{name}", getattr(record, name), record.epoch)


def read_csv(path: Path) -> list[EpochRecord]:
    """The rows of a ``metrics.csv``."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            EpochRecord(
                epoch=int(row["epoch"]),
                loss=float(row["loss"]),
                accuracy=float(row["accuracy"]),
                learning_rate=float(row["learning_rate"]),
                num_examples=int(row["num_examples"]),
                seconds=float(row["seconds"]),
            )
            for row in csv.DictReader(file)
        ]


def write_training_curve(path: Path, history: Sequence[EpochRecord]) -> bool:
    """Draw loss and accuracy over epochs as a PNG; false if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None or not history:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [record.epoch + 1 for record in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [getattr(record, name) for record in history], marker=".", color="#1f5c99")
        axes.set(xlabel="epoch", title=f"training {name}")
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True


def _csv_row(record: EpochRecord) -> str:
    return ",".join(repr(getattr(record, name)) for name in COLUMNS)


def _json_row(record: EpochRecord) -> str:
    return json.dumps(asdict(record)) + "\n"


def _tensorboard(folder: Path, *, purge_step: int) -> Any:
    """A summary writer, or None where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step or None)
