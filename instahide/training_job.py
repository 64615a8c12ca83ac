"""A training run in a folder: logs while it goes, checkpoints to come back to, one model at the end.

========================  =============================================================
file                      what it holds
========================  =============================================================
metrics.csv, .jsonl       one row an epoch, as it happens
metrics.json              the whole run with its settings and its evaluation
checkpoint.safetensors    where the run stands; at most half a minute old; gone when done
model.safetensors         the finished model
training_curve.png        loss and accuracy over epochs, if matplotlib is installed
tensorboard/              the same for TensorBoard, if installed
========================  =============================================================
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import atomic_write_text
from .checkpoints import load_checkpoint, save_checkpoint, save_model
from .errors import InvalidInputError
from .evaluation import EvaluationReport
from .models import ImageClassifier, ModelSpec, build_from_spec
from .training import EpochRecord, TrainingState, train
from .training_config import TrainingConfig
from .training_log import TrainingLog, write_training_curve

if TYPE_CHECKING:
    from .training_loop import TrainingData

CHECKPOINT_FILE = "checkpoint.safetensors"
MODEL_FILE = "model.safetensors"
REPORT_FILE = "metrics.json"
CHECKPOINT_SECONDS = 30.0
MAY_CHANGE = {"epochs", "device", "num_threads", "amp"}
"""Settings a resumed run may change; any other would make it a different run."""


@dataclass(frozen=True)
class FolderRun:
    """A run that ended: by itself, or ``interrupted`` with a checkpoint to resume from."""

    model: ImageClassifier
    config: TrainingConfig
    history: tuple[EpochRecord, ...]
    interrupted: bool
    resumed_after: int | None


def train_in_folder(
    folder: Path,
    spec: ModelSpec,
    data: TrainingData,
    config: TrainingConfig,
    *,
    resume: bool = False,
    initialization_seed: int = 0,
    notes: Mapping[str, Any] | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> FolderRun:
    """Train the model of ``spec``, leaving the files above in ``folder``.

    ``notes`` are JSON values about the data (class names, encoding) that are kept with the finished model.

    Raises:
        InvalidInputError: the folder holds a run already and ``resume`` is false; there is nothing
            to resume; or the settings differ from those of the run to resume.
        IntegrityError: the checkpoint is damaged.
    """
    model, state, history = _start(folder, spec, config, resume, initialization_seed)
    resumed_after = len(history) if state is not None else None
    last_saved = time.monotonic()

    def end_of_epoch(record: EpochRecord, now: TrainingState) -> None:
        nonlocal last_saved
        log.record(record)
        if time.monotonic() - last_saved > CHECKPOINT_SECONDS:
            save_checkpoint(folder / CHECKPOINT_FILE, model, config, now, tuple(log.history))
            last_saved = time.monotonic()
        if on_epoch is not None:
            on_epoch(record)

    with TrainingLog(folder, history=history) as log:
        result = train(
            model, data, config, resume=state, on_step=on_step, on_epoch=end_of_epoch, should_stop=should_stop
        )
    records = tuple(log.history)
    if result.interrupted:
        save_checkpoint(folder / CHECKPOINT_FILE, model, config, result.state, records)
    else:
        save_model(folder / MODEL_FILE, model, training=config.to_dict(), **(notes or {}))
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        write_training_curve(folder / "training_curve.png", records)
    return FolderRun(model, config, records, result.interrupted, resumed_after)


def write_report(folder: Path, run: FolderRun, evaluation: EvaluationReport | None) -> dict[str, Any]:
    """Write ``metrics.json`` and return what is in it."""
    report = {
        "model": run.model.spec.to_dict(),
        "config": run.config.to_dict(),
        "training": [asdict(record) for record in run.history],
        "evaluation": None if evaluation is None else evaluation.to_dict(),
    }
    atomic_write_text(folder / REPORT_FILE, json.dumps(report, indent=2) + "\n")
    return report


def _start(
    folder: Path, spec: ModelSpec, config: TrainingConfig, resume: bool, initialization_seed: int
) -> tuple[ImageClassifier, TrainingState | None, tuple[EpochRecord, ...]]:
    if resume:
        if not (folder / CHECKPOINT_FILE).is_file():
            raise InvalidInputError(
                f"{folder} holds no interrupted run (no {CHECKPOINT_FILE})",
                hint="start without --resume; a finished run has no checkpoint any more",
            )
        checkpoint = load_checkpoint(folder / CHECKPOINT_FILE)
        _check_same(checkpoint.model.spec.to_dict(), spec.to_dict(), set())
        _check_same(checkpoint.config.to_dict(), config.to_dict(), MAY_CHANGE)
        return checkpoint.model, checkpoint.state, checkpoint.history
    for name in (CHECKPOINT_FILE, MODEL_FILE):
        if (folder / name).exists():
            raise InvalidInputError(
                f"{folder} already holds a run ({name})",
                hint="choose another --out, or continue with --resume",
            )
    model = build_from_spec(spec, initialization_seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"{folder} cannot be used as a folder: {error.strerror}", hint="choose another --out"
        ) from error
    return model, None, ()


def _check_same(before: dict[str, Any], now: dict[str, Any], may_change: set[str]) -> None:
    for name, value in before.items():
        if name not in may_change and now[name] != value:
            raise InvalidInputError(
                f"the run to resume had {name} = {value!r}, not {now[name]!r}",
                hint="resume with the options it was started with",
            )
