"""Files as a reader finds them: whole, or not; and what is in them, as a digest."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def half_files(folder: Path) -> list[str]:
    """Files that a reader would take for whole and that are not."""
    faults = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.endswith(".partial"):
            continue
        try:
            _READERS.get(path.suffix, lambda _: None)(path)
        except Exception as error:
            faults.append(f"{path.name} is no whole file: {type(error).__name__}")
    return faults


def _safetensors(path: Path) -> None:
    from safetensors.numpy import load

    load(path.read_bytes())


def _csv(path: Path) -> None:
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]  # `train` appends to one; a last line without its end is none
    widths = {len(row) for row in csv.reader(whole.splitlines())}
    if len(widths) > 1:
        raise ValueError(widths)


def _toml(path: Path) -> None:
    import tomllib

    tomllib.loads(path.read_text())


def _pem(path: Path) -> None:
    text = path.read_text()
    if not text.startswith("-----BEGIN ") or not text.rstrip().endswith("-----"):
        raise ValueError("cut short")


_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".safetensors": _safetensors,
    ".csv": _csv,
    ".toml": _toml,
    ".crt": _pem,
    ".key": _pem,
}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors_digest(path: Path) -> str:
    """Of the tensors of a safetensors file (its metadata come in any order, and may name the folder)."""
    from safetensors.numpy import load_file

    arrays = load_file(path)
    parts = [f"{name} {arrays[name].dtype} {arrays[name].tobytes().hex()}" for name in sorted(arrays)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
