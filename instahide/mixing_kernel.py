"""The mixing pass: gather, weigh, round and flip each record in one go, in C where it was built.

Axes: B records, k sources of a record, d = C·H·W values.

The C code (``_mixing_kernel.c``) is loaded with ctypes; without a compiler at installation it is
absent and the torch code of :mod:`instahide.mixing` runs instead, slower and bit for bit the same.
:func:`active_path` tells which. ``INSTAHIDE_MIXING=torch`` in the environment switches the C code off.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .mixing import mix_with_torch

MAX_SOURCES = 16
_MIN_RECORDS_PER_THREAD = 16
_HUGE_PAGE_BYTES = 2 << 20


@dataclass(frozen=True, repr=False)
class Sources:
    """Some columns of a batch's sources: rows ``indices`` (B, s) of ``images`` (N, C, H, W) uint8."""

    images: NDArray[np.uint8]
    indices: NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class Recipe:
    """Everything drawn for a batch. Secret; lives for one mixing pass.

    ``weights`` (B, k) float32 and ``total`` = 255 × their sum in a row; ``sign_bits`` (B, S) packed or
    ``None``; ``dither`` (B, ≥ d) bytes, with ``levels`` L, or ``None`` for no quantisation.
    """

    sources: Sequence[Sources]
    weights: NDArray[np.float32]
    total: float
    sign_bits: NDArray[np.uint8] | None
    dither: NDArray[np.uint8] | None
    levels: int | None


def active_path() -> str:
    """Which code mixes on the CPU: ``"c"`` or ``"torch"``; both give the same numbers."""
    return "torch" if _library() is None else "c"


def mix_records(
    recipe: Recipe, out: torch.Tensor, *, num_threads: int | None = None, streaming: bool = False
) -> None:
    """Write the B encodings of ``recipe`` to ``out``, float32 (B, d), contiguous, on the CPU.

    Args:
        num_threads: by default torch's own number of threads.
        streaming: write past the caches; for a slice of an output that is much larger than they are.
    """
    count, d = out.shape
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert out.device.type == "cpu"
    gathered = [_gathered(part, d) for part in recipe.sources]
    library = _library()
    if library is None:
        _mix_in_torch(recipe, gathered, out)
        return
    threads = num_threads or torch.get_num_threads()
    share = max(_MIN_RECORDS_PER_THREAD, -(-count // threads))
    addresses = np.concatenate([_addresses(part, d) for part in gathered], axis=1)
    starts = range(0, count, share)
    run = _CCall(library, recipe, addresses, out, streaming)
    if len(starts) == 1:
        run(0, count)
        return
    list(_workers().map(lambda first: run(first, min(first + share, count)), starts))


def new_output(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """An unwritten float32 tensor; a large one in huge pages where the system offers them.

    A fresh output of hundreds of megabytes costs more in first touches of its small pages than in mixing.
    """
    out = torch.empty(shape, dtype=torch.float32, device=device)
    size = out.numel() * out.element_size()
    if device.type == "cpu" and size >= _HUGE_PAGE_BYTES * 8 and hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-out.data_ptr() // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
        whole = (out.data_ptr() + size - first) // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), mmap.MADV_HUGEPAGE)
    return out


def release_pages(images: NDArray[np.uint8]) -> None:
    """Give a memory-mapped input's pages back to the system; they are read again when needed.

    Keeps resident memory bounded while an epoch walks through a file larger than memory. Does nothing
    for arrays in memory and for copy-on-write maps, whose changes would be lost.
    """
    base = _memory_map(images)
    if base is None or base.mode not in ("r", "r+") or not hasattr(mmap, "MADV_DONTNEED"):
        return
    file_map = getattr(base, "_mmap", None)
    if isinstance(file_map, mmap.mmap):
        file_map.madvise(mmap.MADV_DONTNEED)


def is_memory_mapped(images: NDArray[np.uint8]) -> bool:
    """Whether the images lie in a file rather than in memory."""
    return _memory_map(images) is not None


def with_whole_images(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``images`` with each image's bytes in one piece: a copy of channels-last arrays held in memory.

    A memory-mapped array is left alone, whatever its order; its images are gathered batch by batch.
    """
    if not len(images) or images[0].flags.c_contiguous or is_memory_mapped(images):
        return images
    return np.ascontiguousarray(images)


def _memory_map(images: NDArray[np.uint8]) -> Any:
    base: Any = images
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    return base


def _gathered(part: Sources, d: int) -> Sources:
    """The part with every image in d consecutive bytes: gathered into a copy only where it is not so."""
    if not part.indices.size:
        return part
    if int(part.indices.min()) < 0 or int(part.indices.max()) >= len(part.images):
        raise IndexError("a source lies outside its images")
    if part.images[0].size != d:
        raise ValueError(f"an image has {part.images[0].size} values, not {d}")
    if part.images[0].flags.c_contiguous:
        return part
    wanted, inverse = np.unique(part.indices, return_inverse=True)
    copied = np.ascontiguousarray(part.images[wanted])
    return Sources(copied, inverse.reshape(part.indices.shape).astype(np.int64))


def _addresses(part: Sources, d: int) -> NDArray[np.uint64]:
    base, stride = part.images.ctypes.data, part.images.strides[0]
    return (base + part.indices * stride).astype(np.uint64)


def _mix_in_torch(recipe: Recipe, gathered: Sequence[Sources], out: torch.Tensor) -> None:
    rows = [part.images[part.indices].reshape(*part.indices.shape, out.shape[1]) for part in gathered]
    out[:] = mix_with_torch(
        np.concatenate(rows, axis=1),
        recipe.weights,
        recipe.total,
        sign_bits=recipe.sign_bits,
        dither=recipe.dither,
        levels=recipe.levels,
    )


class _CCall:
    """One batch's arguments, checked once; a call encodes records ``first`` to ``last``."""

    def __init__(
        self,
        library: ctypes.CDLL,
        recipe: Recipe,
        addresses: NDArray[np.uint64],
        out: torch.Tensor,
        streaming: bool,
    ) -> None:
        count, d = out.shape
        k = addresses.shape[1]
        if addresses.shape != recipe.weights.shape or len(addresses) != count or not 1 <= k <= MAX_SOURCES:
            raise ValueError(f"{addresses.shape} sources for {recipe.weights.shape} weights, {count} records")
        for bits, least in ((recipe.sign_bits, -(-d // 8)), (recipe.dither, d)):
            if bits is not None and (len(bits) != count or bits.shape[1] < least or bits.strides[1] != 1):
                raise ValueError(f"{bits.shape} bytes of key stream for {count} records of {d} values")
        self._function = library.instahide_mix
        self._streaming = int(streaming)
        self._recipe, self._addresses, self._out = recipe, np.ascontiguousarray(addresses), out
        self._weights = np.ascontiguousarray(recipe.weights, dtype=np.float32)

    def __call__(self, first: int, last: int) -> None:
        recipe, d = self._recipe, self._out.shape[1]
        status = self._function(
            self._addresses[first:].ctypes.data,
            self._weights[first:].ctypes.data,
            last - first,
            self._addresses.shape[1],
            d,
            recipe.total,
            *_row_pointer(recipe.sign_bits, first),
            *_row_pointer(recipe.dither, first),
            float(recipe.levels or 0),
            self._streaming,
            self._out.data_ptr() + 4 * first * d,
        )
        assert status == 0, "the C code refused the number of sources"


def _row_pointer(rows: NDArray[np.uint8] | None, first: int) -> tuple[int | None, int]:
    return (None, 0) if rows is None else (rows[first:].ctypes.data, rows.strides[0])


@cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get("INSTAHIDE_MIXING") == "torch":
        return None
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_mixing_kernel{suffix}")
        if path.exists():
            try:
                return _declared(ctypes.CDLL(str(path)))
            except OSError:  # built for another machine
                continue
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.instahide_mix.argtypes = [
        *(pointer, pointer, size, ctypes.c_int32, size, real),
        *(pointer, size, pointer, size, real, ctypes.c_int32, pointer),
    ]
    library.instahide_mix.restype = ctypes.c_int
    return library


@cache
def _workers() -> ThreadPoolExecutor:
    """Threads for the C calls, made once; a forked child makes its own."""
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="instahide-mixing")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.cache_clear)
