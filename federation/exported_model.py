"""Where a finished model and the facts about it come from: a folder of ``instahide train``, or a run.

Of ``instahide train``: ``model.safetensors``, which carries a SHA-256 of itself; accuracies from
``metrics.json``.

Of a federated run (STUDY/runs/NAME): ``model.safetensors``, whose SHA-256 stands at the end of the run's
``events.jsonl`` and, in a study, in the coordinator's audit log, with the plan's hash; tables from
``metrics.json``; the charges of client-level privacy from the run's ledger.

What a hospital did not tell the coordinator is in none of these files, so it cannot reach a card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instahide.errors import InstaHideError, IntegrityError, InvalidInputError
from instahide.exported_card import NOT_RECORDED, encoding_section
from instahide.models import ImageClassifier

from .config import RunConfig
from .exported_privacy import privacy_of_encodings, privacy_of_run

MODEL_FILE, EVENTS_FILE, METRICS_FILE = "model.safetensors", "events.jsonl", "metrics.json"
MODES = {
    "plain": "plain query",
    "one-view": "one encoded view",
    "ten-views": "average of several encoded views",
}
_SCHEMES = {"inside": "inside: all images mixed are private", "cross": "cross: some come from a public pool"}
_NOT_A_MODEL = "give the --out of `instahide train`, or a finished run: STUDY/runs/NAME"


_UPDATES_SEEN = (
    "The coordinator saw each hospital's update in the clear in every round. Images, or encodings of them, "
    "can be reconstructed from updates."
)
_SUMS_SEEN = (
    "Secure aggregation: the coordinator saw sums over hospitals and no single update. A sum shows less of "
    "each hospital, the more hospitals are in it."
)


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
    return _of_run(folder) if (folder / EVENTS_FILE).exists() else _of_training(folder)


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
        "schedule": _schedule(training, f"{training.get('epochs', '?')} epochs"),
        "settings": training,
    }
    return FinishedModel(model, tuple(map(str, names)), recorded is not None, facts)


def _unknown_encoding() -> dict[str, Any]:
    """Of a model trained before encodings were written down beside it: the worst is stated."""
    section = encoding_section(None)
    return section | {"name": "not recorded", "gives": "not recorded, so nothing can be said to be hidden"}


def _accuracy_of_training(folder: Path) -> dict[str, Any]:
    report = _json(folder / METRICS_FILE) if (folder / METRICS_FILE).exists() else {}
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
        raise _damaged(folder / METRICS_FILE, error) from error
    return {"note": "On labelled test images, by `instahide train`.", "modes": modes}


def _of_run(folder: Path) -> FinishedModel:
    from .coordinator.outputs import file_sha256

    started, finished = _ends(folder)
    digest = file_sha256(folder / MODEL_FILE)
    if digest != finished.get("model-sha256"):
        raise IntegrityError(
            f"{folder / MODEL_FILE} is not the model the run ended with: its SHA-256 is not the one in "
            f"{EVENTS_FILE}",
            hint="it was damaged or edited; restore the folder, or resume the run to write it anew",
        )
    config = _config(started)
    plan = _from_audit_log(folder, config.run_name, digest)
    model = _model(folder, config)
    rows = _rows(folder)
    try:
        facts = _facts_of_run(config, started, finished, rows)
        facts |= {"plan-sha256": plan, "differential-privacy": privacy_of_run(config, folder, rows, model)}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, InstaHideError):
            raise
        raise _damaged(folder / METRICS_FILE, error) from error
    return FinishedModel(model, config.class_names, True, facts)


def _facts_of_run(
    config: RunConfig, started: Mapping[str, Any], finished: Mapping[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    num_rounds = int(finished.get("rounds", 0))
    return {
        "name": config.run_name,
        "origin": f"federated training, {num_rounds} rounds, ended {finished.get('time', NOT_RECORDED)}",
        "data": _sites(started, rows, config),
        "accuracy": _accuracy_of_run(rows, num_rounds, finished["measured"]),
        "encoding": encoding_section(_law(config)),
        "updates": _SUMS_SEEN if config.secure_aggregation else _UPDATES_SEEN,
        "schedule": _schedule(
            config.to_mapping(), f"{config.local_epochs} epochs in each of {num_rounds} rounds"
        ),
        "settings": _shown_settings(config),
    }


def _ends(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last ``run-started`` and the ``run-finished`` after it, which is given the last ``measured``."""
    from .coordinator.events import read_events

    try:
        events = read_events(folder / EVENTS_FILE)
        ends = [event for event in events if event["event"] in ("run-started", "run-finished", "run-failed")]
        measured = [event["metrics"] for event in events if event["event"] == "evaluation-finished"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / EVENTS_FILE, error) from error
    if not ends or ends[-1]["event"] != "run-finished":
        raise InvalidInputError(
            f"the run in {folder} has not finished",
            hint="`instahide coordinator resume STUDY NAME` goes on with it",
        )
    started = [event for event in ends if event["event"] == "run-started"]
    if not started:
        raise _damaged(folder / EVENTS_FILE, ValueError("no run-started"))
    return started[-1], {**ends[-1], "measured": measured[-1] if measured else {}}


def _config(started: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig.from_mapping(started["settings"])
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"{EVENTS_FILE} names no settings", hint="restore the folder") from error
    except InvalidInputError as error:
        raise InvalidInputError(
            f"the run was made by another release: {error.message}", hint="export it with that release"
        ) from error


def _model(folder: Path, config: RunConfig) -> ImageClassifier:
    from instahide.models import ModelSpec, build_from_spec

    from .coordinator.checkpoints import read_tensors
    from .site.weights import load_weights

    tensors, _ = read_tensors(folder / MODEL_FILE)
    channels, height, width = config.image_shape
    spec = ModelSpec(config.model, (channels, height, width), len(config.class_names), config.absolute_input)
    model = build_from_spec(spec)
    try:
        load_weights(model, tensors)
    except InstaHideError as error:
        raise IntegrityError(
            f"{MODEL_FILE} does not fit its run: {error.message}", hint="restore it"
        ) from error
    return model.eval()


def _from_audit_log(folder: Path, run_name: str, digest: str) -> str | None:
    """The plan's hash, and the model's held against the log; None for a run outside a study."""
    from .audit_verification import read_log
    from .coordinator.audit import AUDIT_FILE

    path = folder.resolve().parent.parent / AUDIT_FILE
    if not path.is_file():
        return None
    records = [record for record in read_log(path).records if record.fields.get("run") == run_name]
    models = [
        r.fields["model-sha256"] for r in records if r.event == "run-finished" and "model-sha256" in r.fields
    ]
    if models and models[-1] != digest:
        raise IntegrityError(
            f"{folder / MODEL_FILE} is not the model that the study's audit log names",
            hint="`instahide log verify` checks the log; restore the run's folder",
        )
    plans = [
        str(r.fields["plan-sha256"])
        for r in records
        if r.event == "run-submitted" and "plan-sha256" in r.fields
    ]
    return plans[-1] if plans else None


def _rows(folder: Path) -> list[dict[str, Any]]:
    document = _json(folder / METRICS_FILE)
    try:
        rows = [dict(row) for row in document["rounds"]]
        if any(not isinstance(row["by-site"], dict) or type(row["round"]) is not int for row in rows):
            raise TypeError("rounds are not as they were written")
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / METRICS_FILE, error) from error
    return rows


def _sites(started: Mapping[str, Any], rows: list[dict[str, Any]], config: RunConfig) -> dict[str, Any]:
    """A line a hospital: the images it told of, and its rounds; of a hidden sum, one line for all."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        for name, metrics in row["by-site"].items():
            if "num-examples" in metrics:
                counts.setdefault(str(name), []).append(int(metrics["num-examples"]))
    known = [{"name": n, "training-images": max(c), "rounds": len(c)} for n, c in sorted(counts.items())]
    silent = sorted(set(map(str, started.get("sites", []))) - set(counts))
    note = "Numbers as the hospitals told them in the rounds they contributed to."
    if config.secure_aggregation:
        note = "Secure aggregation: the coordinator saw sums over hospitals, and no hospital's own number."
    return {
        "sites": [*known, *({"name": name, "training-images": None, "rounds": None} for name in silent)],
        "note": note,
    }


def _accuracy_of_run(
    rows: list[dict[str, Any]], num_rounds: int, measured_last: Mapping[str, Any]
) -> dict[str, Any]:
    """Of the last model, from the table; ValueError where the events remember other figures."""
    last = next((row for row in rows if row["round"] == num_rounds), {})
    measured = "evaluate-num-examples" in last
    if any(last.get(name) != value for name, value in measured_last.items()):
        raise ValueError("the table and the events differ")
    modes = {
        words: {
            "accuracy": float(last[f"evaluate-accuracy-{mode}"]),
            "interval": None,
            "num-images": int(last["evaluate-num-examples"]),
        }
        if measured and f"evaluate-accuracy-{mode}" in last
        else None
        for mode, words in MODES.items()
    }
    where = f" at {last['evaluate-sites']} hospitals, weighted by images" if measured else ""
    return {"note": f"Measured by the hospitals on their own test images{where}.", "modes": modes}


def _law(config: RunConfig) -> dict[str, Any] | None:
    if config.encoding == "none":
        return None
    return {
        "mode": config.encoding_mode,
        "num_mixed": config.num_mixed,
        "num_private": config.num_private,
        "where": "at each hospital; encodings stayed there, and updates computed on them left",
    }


def _schedule(settings: Mapping[str, Any], length: str) -> str:
    values = {str(key).replace("_", "-"): value for key, value in settings.items()}
    name = values.get("lr-schedule", "not recorded")
    if name == "exponential-equivalent":
        name = f"exponential-equivalent (the functions of {values.get('equivalent-to')} with weight decay)"
    return (
        f"{values.get('optimizer', '?')}, learning rate {values.get('learning-rate', '?')}, {name}, "
        f"weight decay {values.get('weight-decay', '?')}, batches of {values.get('batch-size', '?')}, "
        f"{length}"
    )


def _shown_settings(config: RunConfig) -> dict[str, Any]:
    """All settings but this machine's folders, and noise where there is none."""
    hidden = {"run-directory", "audit-folder", "resume", "roster"}  # the last: identity keys of hospitals
    if config.differential_privacy == "none":
        hidden |= {"noise-multiplier", "max-grad-norm", "target-delta", "target-epsilon"}
    return {key: value for key, value in config.to_mapping().items() if key not in hidden}


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise TypeError("not an object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    return document


def _damaged(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(
        f"{path} is damaged or was edited ({type(error).__name__})", hint="restore the folder from a backup"
    )
