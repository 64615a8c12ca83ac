"""Where a finished model and the facts about it come from: a folder of ``instahide train``, or a run.

Of ``instahide train``: ``model.safetensors``, which carries a SHA-256 of itself; accuracies from
``metrics.json``. Of a federated run: :mod:`.exported_run`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instahide.errors import IntegrityError, InvalidInputError
from instahide.exported_card import NOT_RECORDED, encoding_section
from instahide.models import ImageClassifier

from .exported_privacy import privacy_of_encodings

MODEL_FILE, EVENTS_FILE, METRICS_FILE = "model.safetensors", "events.jsonl", "metrics.json"
MODES = {
    "plain": "plain query",
    "one-view": "one encoded view",
    "ten-views": "average of several encoded views",
}
_SCHEMES = {"inside": "inside: all images mixed are private", "cross": "cross: some come from a public pool"}
_NOT_A_MODEL = "give the --out of `instahide train`, or a finished run: STUDY/runs/NAME"


@dataclass(frozen=True)
class FinishedModel:
    """A model and its card's facts; ``facts`` lack what only the export knows (files, audit, versions)."""

    model: ImageClassifier
    class_names: tuple[str, ...]
    names_recorded: bool
    facts: dict[str, Any]


def read_finished_model(folder: Path) -> FinishedModel:
    """The model in ``folder``, verified.

    Raises:
        InvalidInputError: no such folder, no finished model in it, or one of another release.
        IntegrityError: a file that is damaged or was edited.
    """
    if folder.name == MODEL_FILE and folder.is_file():
        folder = folder.parent
    if not (folder / MODEL_FILE).is_file():
        reason = "holds no finished model" if folder.is_dir() else "is no folder"
        raise InvalidInputError(f"{folder} {reason} ({MODEL_FILE})", hint=_NOT_A_MODEL)
    if (folder / EVENTS_FILE).exists():
        from .exported_run import read_run

        return read_run(folder)
    return _of_training(folder)


def _of_training(folder: Path) -> FinishedModel:
    from instahide.checkpoints import load_model_and_notes

    model, notes = load_model_and_notes(folder / MODEL_FILE)
    recorded = notes.get("class_names")
    names = recorded or [str(index) for index in range(model.spec.num_classes)]
    data, training = notes.get("data") or {}, notes.get("training") or {}
    law = data.get("law")
    kind = data.get("kind", "not recorded")
    count = data.get("num_images")
    facts = {
        "name": folder.resolve().name,
        "origin": "trained on one machine by `instahide train`",
        "data": {
            "sites": [{"name": f"this machine ({kind})", "training-images": count, "rounds": None}],
            "note": "",
        },
        "accuracy": _accuracy_of_training(folder),
        "encoding": encoding_section(law, scheme=_SCHEMES.get(str(data.get("scheme")), NOT_RECORDED))
        if data
        else _unknown_encoding(),
        "differential-privacy": privacy_of_encodings(law, data, model.spec.image_shape, len(names)),
        "updates": None,
        "plan-sha256": None,
        "schedule": schedule(training, f"{training.get('epochs', '?')} epochs"),
        "settings": training,
    }
    return FinishedModel(model, tuple(map(str, names)), recorded is not None, facts)


def _unknown_encoding() -> dict[str, Any]:
    """Of a model trained before encodings were written down beside it: the worst is stated."""
    section = encoding_section(None)
    return section | {"name": "not recorded", "gives": "not recorded, so nothing can be said to be hidden"}


def _accuracy_of_training(folder: Path) -> dict[str, Any]:
    report = read_json(folder / METRICS_FILE) if (folder / METRICS_FILE).exists() else {}
    keys = {"plain": "plain", "encoded_once": "one-view", "encoded_average": "ten-views"}
    try:
        evaluation = report.get("evaluation") or {}
        modes: dict[str, Any] = {}
        for key, name in keys.items():
            found = evaluation.get(key)
            modes[MODES[name]] = found and {
                "accuracy": float(found["accuracy"]),
                "interval": [float(end) for end in found["accuracy_interval"]],
                "num-images": int(found["num_images"]),
                "num-views": int(found["num_views"]),
            }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(folder / METRICS_FILE, error) from error
    return {"note": "On labelled test images, by `instahide train`.", "modes": modes}


def schedule(settings: Mapping[str, Any], length: str) -> str:
    """Optimiser, learning rate over time and length in one line; ``settings`` in kebab or snake case."""
    values = {str(key).replace("_", "-"): value for key, value in settings.items()}
    name = values.get("lr-schedule", "not recorded")
    if name == "exponential-equivalent":
        name = f"exponential-equivalent (the functions of {values.get('equivalent-to')} with weight decay)"
    return (
        f"{values.get('optimizer', '?')}, learning rate {values.get('learning-rate', '?')}, {name}, "
        f"weight decay {values.get('weight-decay', '?')}, batches of {values.get('batch-size', '?')}, "
        f"{length}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises IntegrityError for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise TypeError("not an object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise damaged(path, error) from error
    return document


def damaged(path: Path, error: Exception) -> IntegrityError:
    """The error for a record that cannot be what was written; only the kind of ``error`` is told."""
    return IntegrityError(
        f"{path} is damaged or was edited ({type(error).__name__})", hint="restore the folder from a backup"
    )
