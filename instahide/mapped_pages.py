"""Reading a memory-mapped array end to end without keeping it in memory.

Pages of a mapped file stay charged to the process that touched them, and a random gather
touches nearly all of them: one epoch over a 3 GB file would show as 3 GB of RAM. Handing the
pages back after each batch costs a page fault later (the file stays in the kernel's cache)
and keeps the resident size at a batch.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray


def drop_mapped_pages(array: NDArray[Any]) -> bool:
    """Give the resident pages of a read-only memory map back to the system.

    Only mode ``"r"`` is touched: for a copy-on-write map the same call would throw the
    caller's changes away. Returns whether anything was done.
    """
    if not isinstance(array, np.memmap) or array.mode != "r":
        return False
    mapping = getattr(array, "_mmap", None)
    if not isinstance(mapping, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return False
    mapping.madvise(mmap.MADV_DONTNEED)
    return True
