"""The run directory: one run's files, one coordinator at a time.

    sites.json            in   node id → hospital, written at registration
    initial.safetensors   in   the initial weights
    events.jsonl          out  what happened (events.py)
    metrics.csv, .json    out  a row a round; rewritten whole after every round
    checkpoints/          out  checkpoints.py
    model.safetensors     out  the last global model
    model_card.md         out  what it was trained on, and what that does not protect

Row r of the tables is the model *after* r rounds (row 0: the initial one). Its accuracies arrive
with the replies of the round after, because a site measures a model when it receives it.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from instahide.atomic import atomic_write_bytes, atomic_write_text, first_error_wins
from instahide.errors import IntegrityError, InvalidInputError, RefusedError

from ..config import RunConfig
from ..messages import Arrays, check_array_record
from .audit import AuditedEvents
from .checkpoints import CheckpointStore, read_tensors
from .events import EventLog
from .validation import Update, weighted_metrics

COLUMNS = (
    "round",
    "sites",
    "num-examples",
    "train-loss",
    "seconds",
    "overhead-seconds",
    "evaluate-sites",
    "evaluate-num-examples",
    "evaluate-accuracy-plain",
    "evaluate-accuracy-one-view",
    "evaluate-accuracy-ten-views",
    "evaluate-loss-plain",
    "evaluate-loss-one-view",
    "evaluate-loss-ten-views",
)


class RunDirectory:
    """The files of one run, held under a lock until ``close``."""

    def __init__(self, config: RunConfig) -> None:
        if not config.run_directory:
            raise InvalidInputError("run-directory is not set", hint="give the run a folder to write to")
        self.path = Path(config.run_directory)
        if not self.path.is_dir():
            raise InvalidInputError(
                f"there is no folder {self.path}", hint="`instahide coordinator run` makes one"
            )
        self._lock = _take_lock(self.path / ".lock")
        _clear_pieces(self.path, self.path / "checkpoints")
        self.checkpoints = CheckpointStore(self.path / "checkpoints", config)
        if not config.resume and self.checkpoints.rounds():
            os.close(self._lock)
            raise RefusedError(
                f"{self.path} already holds a run", hint="resume it, or choose another run-directory"
            )
        self.events = AuditedEvents(EventLog(self.path / "events.jsonl"), config)

    def close(self) -> None:
        """Close the event log and let another coordinator in."""
        with first_error_wins(lambda: os.close(self._lock)):
            self.events.close()

    def initial_weights(self) -> Arrays:
        """The weights of ``initial.safetensors``, in the file's order of names."""
        path = self.path / "initial.safetensors"
        if not path.exists():
            raise InvalidInputError(
                f"there is no {path}", hint="`instahide coordinator run` writes it from the model"
            )
        tensors, _ = read_tensors(path)
        check_array_record(tensors)
        unusable = [name for name, array in tensors.items() if not np.isfinite(array).all()]
        if unusable or not tensors:
            raise IntegrityError(f"{path} holds no usable weights", hint="write it anew from the model")
        return tensors

    def write_model(self, weights: Arrays, config: RunConfig, server_round: int) -> Path:
        """Write the final model with its public description as metadata."""
        path = self.path / "model.safetensors"
        contiguous = {name: np.asarray(array, order="C") for name, array in weights.items()}
        metadata = {
            "format": "instahide-fl model 1",
            "model": config.model,
            "round": str(server_round),
            "class-names": json.dumps(config.class_names),
            "image-shape": json.dumps(config.image_shape),
            "absolute-input": json.dumps(config.absolute_input),
        }
        atomic_write_bytes(path, save(contiguous, metadata))
        return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class MetricsTable:
    """``metrics.json`` and ``metrics.csv``; ``rounds`` is the list of rows, by round."""

    def __init__(self, folder: Path, run_name: str) -> None:
        self._folder = folder
        self._run_name = run_name
        self.rounds: list[dict[str, Any]] = []

    def resume_at(self, server_round: int) -> None:
        """Take over the rows up to ``server_round`` of the interrupted run.

        Later rounds happen again, and so do the measurements of the model of that round.
        """
        path = self._folder / "metrics.json"
        if path.exists():
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))["rounds"]
                self.rounds = [row for row in rows if row["round"] < server_round]
                self.rounds += [_without_measurements(row) for row in rows if row["round"] == server_round]
            except (ValueError, KeyError, TypeError) as problem:
                raise IntegrityError(
                    f"{path} is not a table of metrics", hint="delete it to resume without"
                ) from problem

    def trained(self, server_round: int, updates: list[Update], *, seconds: float) -> dict[str, Any]:
        """Record who trained the model of a round, and how long that took."""
        row = self._row(server_round)
        slowest = max(float(update.metrics.get("worker-seconds", 0.0)) for update in updates)
        row |= {
            "sites": sum(len(update.names) for update in updates),
            "num-examples": sum(update.num_examples for update in updates),
        }
        row |= {"seconds": seconds, "overhead-seconds": max(0.0, seconds - slowest)}
        row |= {name: value for name, value in weighted_metrics(updates).items() if name == "train-loss"}
        for update in updates:
            own = {name: value for name, value in update.metrics.items() if not name.startswith("evaluate-")}
            row["by-site"].setdefault(update.site_name, {}).update(own | {"update-norm": update.norm})
        return row

    def measured(self, server_round: int, updates: list[Update]) -> dict[str, float]:
        """Record what the sites measured on the model of a round; the averages are returned."""
        measuring = [update for update in updates if "evaluate-num-examples" in update.metrics]
        averages = {name: value for name, value in weighted_metrics(updates).items() if name != "train-loss"}
        if measuring:
            row = self._row(server_round)
            row["evaluate-sites"] = sum(len(update.names) for update in measuring)
            row["evaluate-num-examples"] = sum(
                update.metrics["evaluate-num-examples"] for update in measuring
            )
            row |= averages
        for update in measuring:
            own = {name: value for name, value in update.metrics.items() if name.startswith("evaluate-")}
            row["by-site"].setdefault(update.site_name, {}).update(own)
        return averages

    def write(self) -> None:
        """Write both files anew, atomically."""
        document = {"run-name": self._run_name, "rounds": self.rounds}
        atomic_write_text(
            self._folder / "metrics.json", json.dumps(document, indent=1, allow_nan=False) + "\n"
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rounds)
        atomic_write_text(self._folder / "metrics.csv", text.getvalue())

    def _row(self, server_round: int) -> dict[str, Any]:
        for row in self.rounds:
            if row["round"] == server_round:
                return row
        self.rounds.append({"round": server_round, "by-site": {}})
        return self.rounds[-1]


def _without_measurements(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in row.items() if not name.startswith("evaluate-")}
    by_site = {site: _without_measurements(metrics) for site, metrics in row.get("by-site", {}).items()}
    return kept | ({"by-site": by_site} if "by-site" in row else {})


def _take_lock(path: Path) -> int:
    """An exclusive lock on the run directory, or RefusedError with the holder's process id."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        holder = os.read(descriptor, 20).decode(errors="replace")
        os.close(descriptor)
        raise RefusedError(
            f"{path.parent} is in use by the coordinator with process id {holder or 'unknown'}",
            hint="stop that run, or choose another run-directory",
        ) from problem
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
    except OSError:  # a full disk
        os.close(descriptor)
        raise
    return descriptor


def _clear_pieces(*folders: Path) -> None:
    """Remove what writers left that were killed half way; under the lock there is no other writer."""
    for folder in folders:
        for pattern in (".*.partial", ".tmp*"):  # ours, and safetensors'
            for piece in folder.glob(pattern):
                piece.unlink(missing_ok=True)
