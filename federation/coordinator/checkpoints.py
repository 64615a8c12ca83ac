"""Round checkpoints: a killed coordinator goes on with the true round number, bit for bit.

``checkpoints/round-0003.safetensors`` holds the global weights after round 3 (``weights/NAME``,
float32), the server optimiser's state (``state/NAME``, float64) and, as metadata: the round, the
run's settings and their hash, the data-set sizes sites have been held to, and a SHA-256 over all
of that (safetensors itself has no checksum). Files are written atomically and the last few kept.

A checkpoint that fails its checksum is passed over for the one before it, and reported. One made
under other settings is refused, naming them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from instahide.atomic import atomic_write_bytes
from instahide.errors import IntegrityError, RefusedError

from ..config import RunConfig
from ..messages import Arrays
from .events import Events

FORMAT = "instahide-fl round checkpoint 1"
_FILE_NAME = re.compile(r"round-(\d{4,6})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything the next round depends on."""

    server_round: int
    weights: Arrays
    state: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of one run directory."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self._folder = folder
        self._config = config

    def path(self, server_round: int) -> Path:
        """Where the checkpoint of a round lies."""
        return self._folder / f"round-{server_round:04d}.safetensors"

    def rounds(self) -> list[int]:
        """Rounds with a checkpoint file, oldest first."""
        found = [_FILE_NAME.fullmatch(path.name) for path in self._folder.glob("round-*.safetensors")]
        return sorted(int(match[1]) for match in found if match)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint (whole or not at all), then delete all but the last few."""
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, NDArray[Any]] = {
            f"weights/{name}": array for name, array in checkpoint.weights.items()
        }
        tensors |= {f"state/{name}": array for name, array in checkpoint.state.items()}
        tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
        metadata = {
            "format": FORMAT,
            "round": str(checkpoint.server_round),
            "config-hash": self._config.config_hash(),
            "config": json.dumps(self._config.to_mapping(), sort_keys=True),
            "sizes": json.dumps(checkpoint.sizes, sort_keys=True),
            # safetensors sorts tensors its own way; the model's order is worth keeping
            "order": json.dumps(list(checkpoint.weights)),
        }
        metadata["sha256"] = _digest(tensors, metadata)
        path = self.path(checkpoint.server_round)
        # Not safetensors' own writing to a file: its error for a full disk is no OSError.
        atomic_write_bytes(path, save(tensors, metadata))
        for old in self.rounds()[: -self._config.keep_checkpoints]:
            self.path(old).unlink(missing_ok=True)
        return path

    def load_latest(self, events: Events) -> Checkpoint | None:
        """The newest whole checkpoint; None when the run never wrote one.

        Raises IntegrityError when there are checkpoints and none is whole, RefusedError when the
        newest whole one was made under settings that lead to other weights.
        """
        rounds = self.rounds()
        for server_round in reversed(rounds):
            try:
                return self._load(self.path(server_round))
            except IntegrityError as problem:
                events.emit("checkpoint-corrupt", round=server_round, reason=problem.message)
        if rounds:
            raise IntegrityError(
                f"none of the {len(rounds)} checkpoints in {self._folder} is whole",
                hint="start the run anew in an empty run-directory, or restore the folder from a backup",
            )
        return None

    def _load(self, path: Path) -> Checkpoint:
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT or metadata.get("sha256") != _digest(tensors, metadata):
            raise IntegrityError(
                f"{path.name} does not match its checksum", hint="it was cut short or edited"
            )
        self._refuse_other_settings(path, metadata)
        return Checkpoint(
            server_round=int(metadata["round"]),
            weights={name: tensors[f"weights/{name}"] for name in json.loads(metadata["order"])},
            state={name[6:]: array for name, array in tensors.items() if name.startswith("state/")},
            sizes=json.loads(metadata["sizes"]),
        )

    def _refuse_other_settings(self, path: Path, metadata: Mapping[str, str]) -> None:
        if metadata["config-hash"] == self._config.config_hash():
            return
        then, now = json.loads(metadata["config"]), self._config.to_mapping()
        changed = [key for key in now if then.get(key) != now[key]]
        raise RefusedError(
            f"{path.name} was made under other settings: {', '.join(changed) or 'of another release'}",
            hint="resume with the settings the run was started with, or start anew in an empty run-directory",
        )


def read_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """All tensors and the metadata of a safetensors file. Raises IntegrityError if it is not one."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as problem:
        raise IntegrityError(
            f"{path.name} is not a whole safetensors file", hint="it was cut short, edited or never written"
        ) from problem


def _digest(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """SHA-256 over the metadata and every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    head = {key: value for key, value in metadata.items() if key != "sha256"}
    digest.update(json.dumps(head, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
