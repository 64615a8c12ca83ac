"""Models and unfinished runs on disk: safetensors, whole or not there, verified when read.

A file holds the weights (``model.…``), for a run under way the optimiser's tensors
(``optimizer.…``), and one JSON text: format version, model description, training settings, where
the run stands, and a SHA-256 over all tensors and that text. There is no pickle, so loading
a file from elsewhere runs no code; a changed byte is an ``IntegrityError``, not a different model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .atomic import atomic_write_bytes
from .errors import InstaHideError, IntegrityError, InvalidInputError
from .models import ImageClassifier, ModelSpec, build_from_spec
from .training import EpochRecord, TrainingState
from .training_config import TrainingConfig

FORMAT = "instahide-model"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What ``load_checkpoint`` found: a model ready to train on, and the rest of the run."""

    model: ImageClassifier
    config: TrainingConfig
    state: TrainingState
    history: tuple[EpochRecord, ...]
    notes: dict[str, Any]


def save_model(path: str | os.PathLike[str], model: ImageClassifier, **notes: Any) -> None:
    """Write weights and description of a finished model; ``notes`` are JSON values to keep with it."""
    _save(path, _weights(model), {"model": model.spec.to_dict(), "notes": notes})


def load_model(path: str | os.PathLike[str]) -> ImageClassifier:
    """The model of ``save_model`` or of a checkpoint, on the CPU, in evaluation mode.

    Raises:
        InvalidInputError: no such file.
        IntegrityError: not a model file, truncated, edited, or weights that do not fit the description.
    """
    tensors, content = _load(path)
    return _model(path, tensors, content).eval()


def load_model_and_notes(path: str | os.PathLike[str]) -> tuple[ImageClassifier, dict[str, Any]]:
    """A finished model as by ``load_model``, and the notes it was saved with.

    Raises:
        InvalidInputError: no such file, or a run that is not finished.
        IntegrityError: as for ``load_model``.
    """
    tensors, content = _load(path)
    if "state" in content:
        raise InvalidInputError(
            f"{Path(path).name} is a checkpoint of a run under way", hint="finish the run: --resume"
        )
    return _model(path, tensors, content).eval(), dict(content.get("notes", {}))


def save_checkpoint(
    path: str | os.PathLike[str],
    model: ImageClassifier,
    config: TrainingConfig,
    state: TrainingState,
    history: tuple[EpochRecord, ...] = (),
    **notes: Any,
) -> None:
    """Write a run under way so that it can go on exactly; replaces ``path`` in one step."""
    tensors = _weights(model)
    tensors.update({f"optimizer.{name}": value for name, value in state.optimizer.items()})
    content = {
        "model": model.spec.to_dict(),
        "config": config.to_dict(),
        "state": {
            "seed": state.seed,
            "epoch": state.epoch,
            "step": state.step,
            "loss_sum": state.loss_sum,
            "num_right": state.num_right,
        },
        "history": [asdict(record) for record in history],
        "notes": notes,
    }
    _save(path, tensors, content)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what ``save_checkpoint`` wrote.

    Raises:
        InvalidInputError: no such file, or a finished model without a run to resume.
        IntegrityError: as for ``load_model``.
    """
    tensors, content = _load(path)
    if "state" not in content:
        raise InvalidInputError(
            f"{Path(path).name} is a finished model, not a checkpoint",
            hint="resume from checkpoint.safetensors",
        )
    optimizer = {
        name.removeprefix("optimizer."): value
        for name, value in tensors.items()
        if name.startswith("optimizer.")
    }
    try:
        state = TrainingState(**content["state"], optimizer=optimizer)
        history = tuple(EpochRecord(**record) for record in content["history"])
        config = TrainingConfig.from_dict(content["config"])
    except (TypeError, KeyError, InvalidInputError) as error:
        raise _damaged(path, str(error)) from error
    return Checkpoint(_model(path, tensors, content), config, state, history, content.get("notes", {}))


def _weights(model: ImageClassifier) -> dict[str, torch.Tensor]:
    return {f"model.{name}": value for name, value in model.state_dict().items()}


def _model(
    path: str | os.PathLike[str], tensors: dict[str, torch.Tensor], content: dict[str, Any]
) -> ImageClassifier:
    weights = {
        name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")
    }
    try:
        model = build_from_spec(ModelSpec.from_dict(content["model"]))
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, InstaHideError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    return model


def _save(path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], content: dict[str, Any]) -> None:
    from safetensors.torch import save

    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, sort_keys=True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, save(ready, metadata={"content": text, "sha256": _digest(ready, text)}))


def _load(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InvalidInputError(f"no file {os.fspath(path)!r}", hint="check the path")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        text = metadata["content"]
        content = json.loads(text)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if _digest(tensors, text) != metadata.get("sha256"):
        raise _damaged(path, "the contents do not match their SHA-256")
    if content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
        raise _damaged(path, f"format {content.get('format')!r} version {content.get('format_version')!r}")
    return tensors, content


def _digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    sha256 = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha256.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha256.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()


def _damaged(path: str | os.PathLike[str], why: str) -> IntegrityError:
    return IntegrityError(
        f"{Path(path).name} is not a whole model file of this toolkit: {why}",
        hint="the file is damaged, edited or something else; fetch or make it again",
    )
