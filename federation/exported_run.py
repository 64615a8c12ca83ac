"""The model of a federated run (STUDY/runs/NAME), held against what the run wrote down.

The SHA-256 of ``model.safetensors`` stands at the end of the run's ``events.jsonl`` and, in a study, in the
coordinator's audit log, with the plan's hash. Tables come from ``metrics.json``, whose last figures must
be those of the events; the charges of client-level privacy from the run's ledger. What a hospital did not
tell the coordinator is in none of these files, so it cannot reach a card.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instahide.errors import InstaHideError, IntegrityError, InvalidInputError
from instahide.exported_card import NOT_RECORDED, encoding_section
from instahide.models import ImageClassifier

from .config import RunConfig
from .exported_model import (
    EVENTS_FILE,
    METRICS_FILE,
    MODEL_FILE,
    MODES,
    FinishedModel,
    damaged,
    read_json,
    schedule,
)
from .exported_privacy import privacy_of_run

_UPDATES_SEEN = (
    "The coordinator saw each hospital's update in the clear in every round. Images, or encodings of them, "
    "can be reconstructed from updates."
)
_SUMS_SEEN = (
    "Secure aggregation: the coordinator saw sums over hospitals and no single update. A sum shows less of "
    "each hospital, the more hospitals are in it."
)


def read_run(folder: Path) -> FinishedModel:
    """The model of a finished run and its facts, verified.

    Raises:
        InvalidInputError: the run has not finished, or is of another release.
        IntegrityError: a file that is damaged or was edited.
    """
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
        raise damaged(folder / METRICS_FILE, error) from error
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
        "schedule": schedule(
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
        raise damaged(folder / EVENTS_FILE, error) from error
    if not ends or ends[-1]["event"] != "run-finished":
        raise InvalidInputError(
            f"the run in {folder} has not finished",
            hint="`instahide coordinator resume STUDY NAME` goes on with it",
        )
    started = [event for event in ends if event["event"] == "run-started"]
    if not started:
        raise damaged(folder / EVENTS_FILE, ValueError("no run-started"))
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
    document = read_json(folder / METRICS_FILE)
    try:
        rows = [dict(row) for row in document["rounds"]]
        if any(not isinstance(row["by-site"], dict) or type(row["round"]) is not int for row in rows):
            raise TypeError("rounds are not as they were written")
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(folder / METRICS_FILE, error) from error
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


def _shown_settings(config: RunConfig) -> dict[str, Any]:
    """All settings but this machine's folders, and noise where there is none."""
    hidden = {"run-directory", "audit-folder", "resume", "roster"}  # the last: identity keys of hospitals
    if config.differential_privacy == "none":
        hidden |= {"noise-multiplier", "max-grad-norm", "target-delta", "target-epsilon"}
    return {key: value for key, value in config.to_mapping().items() if key not in hidden}
