"""A descent on disk: written whole or not at all, read without running code, refused if it is another's."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .deep_matrix_factorization_problem import FactorizationInputError


def fingerprint(settings: dict[str, Any], tensors: list[Tensor]) -> str:
    """SHA-256 of what decides a run: a checkpoint continues the same run or none."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the file in one step; a crash leaves the old one or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path, expected: str) -> dict[str, Any]:
    """The state saved last.

    Raises:
        FactorizationInputError: the file is not a checkpoint, or one of other data or settings.
    """
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        found = state["fingerprint"]
    except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError, EOFError) as error:
        raise FactorizationInputError(
            f"{path} is not a checkpoint of a factorisation; delete it to start"
        ) from error
    if found != expected:
        raise FactorizationInputError(
            f"{path} belongs to a run with other data or settings; give another path or delete it"
        )
    return state
