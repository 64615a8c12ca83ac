"""Room for a kernel matrix: asked for before any work, in large pages where the system has them."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress

import psutil
import torch

from .kernel_input import KernelInputError

_HUGE_PAGE_BYTES = 2 << 20
_SHARE_OF_FREE_MEMORY = 0.9


def allocate(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised matrix in memory.

    Raises:
        KernelInputError: it would not fit; the text says how much is free, and what to do.
    """
    size = shape[0] * shape[1] * dtype.itemsize
    free = psutil.virtual_memory().available
    if size > _SHARE_OF_FREE_MEMORY * free:
        raise KernelInputError(
            f"a kernel of {shape[0]} x {shape[1]} in {str(dtype).removeprefix('torch.')} takes "
            f"{size / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free; give a file "
            "with out=, or fewer inputs"
        )
    matrix = torch.empty(shape, dtype=dtype)
    if size >= 2 * _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-matrix.data_ptr() // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
        whole = (matrix.data_ptr() + size - first) // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
        with suppress(OSError, AttributeError):  # only speed is lost
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), mmap.MADV_HUGEPAGE)
    return matrix
