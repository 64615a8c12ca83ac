"""A kernel matrix in a ``.npy`` file larger than memory, filled piece by piece, resumed after a kill.

While it grows the matrix is ``NAME.partial`` and its journal ``NAME.partial.json`` says which blocks are done
and of which inputs and settings (a SHA-256, not the inputs). The matrix is flushed to disk before the journal
speaks of it, and the journal is replaced whole, so after a kill or a power cut a block counts as done only if
it is. When all is done the file is renamed; ``NAME`` is never half a kernel.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .kernel_input import KernelInputError

_SECONDS_BETWEEN_CHECKPOINTS = 10.0
Block = tuple[int, int, int, int]  # rows i0 .. i1, columns j0 .. j1


class KernelFile:
    """The file, its matrix and what of it is done."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: torch.dtype, fingerprint: str) -> None:
        self.path, self._fingerprint = path, fingerprint
        self._partial = path.with_name(path.name + ".partial")
        self._journal = path.with_name(path.name + ".partial.json")
        self._lock, self._last = threading.Lock(), time.monotonic()
        if path.exists():
            raise KernelInputError(f"{path} exists; give another name, or remove it first")
        self._done = self._read_journal()
        _check_room(path, shape[0] * shape[1] * dtype.itemsize, already=self._partial)
        number = np.float32 if dtype == torch.float32 else np.float64
        if self._done:
            self.matrix: NDArray[Any] = np.lib.format.open_memmap(self._partial, mode="r+")
            if self.matrix.shape != shape or self.matrix.dtype != number:
                raise KernelInputError(
                    f"{self._partial} does not fit its journal; remove both to start again"
                )
        else:
            self.matrix = np.lib.format.open_memmap(self._partial, mode="w+", dtype=number, shape=shape)

    def is_done(self, block: Block) -> bool:
        return block in self._done

    def finished(self, block: Block) -> None:
        """Note a block; every few seconds make it last."""
        with self._lock:
            self._done.add(block)
            if time.monotonic() - self._last >= _SECONDS_BETWEEN_CHECKPOINTS:
                self.checkpoint()

    def checkpoint(self) -> None:
        self.matrix.flush()  # type: ignore[attr-defined]
        written = self._journal.with_name(self._journal.name + ".new")
        with written.open("w", encoding="utf-8") as file:
            json.dump({"fingerprint": self._fingerprint, "done": sorted(self._done)}, file)
            file.flush()
            os.fsync(file.fileno())
        written.replace(self._journal)
        self._last = time.monotonic()

    def complete(self) -> NDArray[Any]:
        """Give the file its name; returns the matrix, read from disk on demand."""
        self.matrix.flush()  # type: ignore[attr-defined]
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self.path)
        self._journal.unlink(missing_ok=True)
        return np.load(self.path, mmap_mode="r")  # type: ignore[no-any-return]

    def _read_journal(self) -> set[Block]:
        if not (self._journal.exists() and self._partial.exists()):
            return set()
        try:
            said = json.loads(self._journal.read_text(encoding="utf-8"))
            fingerprint, done = said["fingerprint"], {tuple(block) for block in said["done"]}
        except (ValueError, KeyError, TypeError):
            raise KernelInputError(
                f"{self._journal} is damaged; remove it to start the kernel again"
            ) from None
        if fingerprint != self._fingerprint:
            raise KernelInputError(
                f"{self._partial} is half a kernel of other inputs or settings; remove it "
                f"and {self._journal.name}, or give another name"
            )
        return done


def fingerprint_of(tensors: Iterable[torch.Tensor], settings: dict[str, Any]) -> str:
    """SHA-256 over inputs and settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in tensors:
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _check_room(path: Path, size: int, already: Path) -> None:
    folder = path.resolve().parent
    if not folder.is_dir():
        raise KernelInputError(f"the folder {folder} does not exist; make it first")
    usage = os.statvfs(folder)
    used = already.stat().st_blocks * 512 if already.exists() else 0
    free = usage.f_bavail * usage.f_frsize + used
    if size > free:
        raise KernelInputError(
            f"a kernel of {size / 1e9:.1f} GB does not fit: {free / 1e9:.1f} GB are free in {folder}"
        )
