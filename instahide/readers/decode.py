"""Every picture of a split, decoded by a few threads and handed on in order.

The decoders release the interpreter lock, so threads are enough. Work is handed out a few files
at a time and only a bounded number of decoded pictures waits: memory does not grow with the
folder. What is done with the pixels (kept, or only fingerprinted) runs in the threads too. A volume is
one piece of work, and few of those run at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from .catalogue import Item
from .limits import QuarantinedFile, UnreadableError, quiet_decoders
from .units import Decoded, Plan, Unit

Result = TypeVar("Result")
FILES_PER_TASK = 8
TASKS_PER_THREAD = 4
MAX_VOLUMES_AT_ONCE = 2


def decode_each(
    plan: Plan, use: Callable[[Item, Decoded], Result]
) -> Generator[tuple[Item, Result | QuarantinedFile], None, None]:
    """Each picture's item and ``use(item, decoded)`` of it in order, or its file's QuarantinedFile.

    ``use`` runs in a worker thread and may raise UnreadableError to set the picture aside. Close the
    generator when stopping early: the threads and the silenced decoders end with it.
    """

    def one(item: Item, outcome: Decoded | QuarantinedFile) -> tuple[Item, Result | QuarantinedFile]:
        if isinstance(outcome, QuarantinedFile):
            return item, outcome
        try:
            return item, use(item, outcome)
        except UnreadableError as error:
            return item, QuarantinedFile(item.name, error.reason)

    def several(units: list[Unit]) -> list[tuple[Item, Result | QuarantinedFile]]:
        return [one(*outcome) for unit in units for outcome in unit.decode()]

    workers = max(1, min(8, len(os.sched_getaffinity(0))))
    most_waiting = workers * TASKS_PER_THREAD
    if plan.num_volumes:
        workers = most_waiting = min(workers, MAX_VOLUMES_AT_ONCE)
    waiting: deque[Future[list[tuple[Item, Result | QuarantinedFile]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        with quiet_decoders():
            for units in _tasks(plan):
                waiting.append(pool.submit(several, units))
                if len(waiting) >= most_waiting:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
    finally:  # also when the caller stops early
        pool.shutdown(cancel_futures=True)


def _tasks(plan: Plan) -> Iterator[list[Unit]]:
    """A few pictures, or one volume."""
    task: list[Unit] = []
    for unit in plan.units:
        if task and (unit.is_volume or len(task) == FILES_PER_TASK):
            yield task
            task = []
        task.append(unit)
        if unit.is_volume:
            yield task
            task = []
    if task:
        yield task
