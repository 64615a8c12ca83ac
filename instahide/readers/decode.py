"""Every file of a split, decoded by a few threads and handed on in order.

The decoders release the interpreter lock, so threads are enough. Work is handed out a few files
at a time and only a bounded number of decoded pictures waits: memory does not grow with the
folder. What is done with the pixels (kept, or only fingerprinted) runs in the threads too.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from . import dicom, picture
from .catalogue import Item
from .limits import Limits, QuarantinedFile, UnreadableError, quiet_decoders, read_bytes

Result = TypeVar("Result")
FILES_PER_TASK = 8
TASKS_PER_THREAD = 4


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels (H, W) or (H, W, 3), the file's own depth, and the subject it names (DICOM)."""

    pixels: NDArray[np.uint8]
    depth: str
    subject: str | None = field(default=None, repr=False)


def decode_file(item: Item, limits: Limits, bit_depth: int) -> Decoded:
    """Decode by content: the DICM mark makes a DICOM file, everything else must be a picture."""
    data = read_bytes(item.path, limits)
    if item.path.suffix.lower() in dicom.SUFFIXES or dicom.looks_like_dicom(data[:132]):
        dicom.require_pydicom()
        pixels, subject = dicom.decode_dicom(data, limits)
        return Decoded(pixels, "dicom", subject if item.subject is None else item.subject)
    pixels, depth = picture.decode_picture(data, limits, bit_depth)
    return Decoded(pixels, depth, item.subject)


def decode_each(
    items: Sequence[Item], limits: Limits, bit_depth: int, use: Callable[[int, Decoded], Result]
) -> Generator[Result | QuarantinedFile, None, None]:
    """``use(index, decoded)`` of each file in order, or the file's QuarantinedFile.

    ``use`` runs in a worker thread and may raise UnreadableError to set the file aside. Close the
    generator when stopping early: the threads and the silenced decoders end with it.
    """

    def one(index: int) -> Result | QuarantinedFile:
        try:
            return use(index, decode_file(items[index], limits, bit_depth))
        except UnreadableError as error:
            return QuarantinedFile(items[index].name, error.reason)

    def several(start: int) -> list[Result | QuarantinedFile]:
        return [one(index) for index in range(start, min(start + FILES_PER_TASK, len(items)))]

    workers = max(1, min(8, len(os.sched_getaffinity(0))))
    waiting: deque[Future[list[Result | QuarantinedFile]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        with quiet_decoders():
            for start in range(0, len(items), FILES_PER_TASK):
                waiting.append(pool.submit(several, start))
                if len(waiting) >= workers * TASKS_PER_THREAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
    finally:  # also when the caller stops early
        pool.shutdown(cancel_futures=True)
