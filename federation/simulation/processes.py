"""Players in processes of their own: each keeps its hospitals and one model, and answers over a pipe.

Hospital i is played by process i mod P, always, because its session keys of secure aggregation are in that
process's memory. A batch of orders with the same weights goes out once a process. The pipes carry pickles
between a parent and its own children, on one machine, of our own types; no hospital's data cross them.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, cast

from instahide.errors import FederationError

from ..messages import SiteReply
from .grid import Order

REPLIES_AT_ONCE: Final = 8
_GOODBYE_SECONDS: Final = 5.0


class ProcessPlayers:
    """``num_processes`` players of the population in ``population_folder``; their state under ``folder``.

    A context manager: the processes end with it, whatever ended it.
    """

    def __init__(self, population_folder: Path, folder: Path, *, num_processes: int, policy: str) -> None:
        self._arguments = (population_folder, folder, policy)
        self._num_processes = num_processes
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def __enter__(self) -> ProcessPlayers:
        context = multiprocessing.get_context("spawn")
        try:
            for _ in range(self._num_processes):
                ours, theirs = context.Pipe()
                process = context.Process(target=_play, args=(theirs, *self._arguments), daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(ours)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_GOODBYE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self._pipes = [], []

    @property
    def process_ids(self) -> list[int]:
        """Of the players, to measure them."""
        return [process.pid for process in self._processes]

    def identity_lines(self, numbers: Sequence[int]) -> dict[int, str]:
        """Public identity key by number."""
        lines: dict[int, str] = {}
        for pipe, mine in self._shares(numbers):
            self._send(pipe, ("identities", mine))
        for pipe, mine in self._shares(numbers):
            lines |= dict(zip(mine, self._receive(pipe), strict=True))
        return lines

    def answer(self, orders: Sequence[Order]) -> Iterator[tuple[int, SiteReply]]:
        """See :class:`.grid.Players`; raises FederationError if a player died."""
        by_number = {order.number: order for order in orders}
        left: dict[Connection, int] = {}
        for pipe, mine in self._shares(list(by_number)):
            requests = [by_number[number].request for number in mine]
            # Equal weights are one object, which a pickle holds once.
            common = (requests[0].kind, requests[0].to_mapping(), requests[0].arrays)
            records = [(number, by_number[number].request.aggregation_record) for number in mine]
            self._send(pipe, ("answer", common, records))
            left[pipe] = len(mine)
        while left:
            for pipe in cast("list[Connection]", wait(list(left))):
                batch = self._receive(pipe)
                left[pipe] -= len(batch)
                if not left[pipe]:
                    del left[pipe]
                yield from batch

    def _shares(self, numbers: Sequence[int]) -> Iterator[tuple[Connection, list[int]]]:
        for place, pipe in enumerate(self._pipes):
            mine = [number for number in numbers if number % len(self._pipes) == place]
            if mine:
                yield pipe, mine

    def _send(self, pipe: Connection, message: Any) -> None:
        try:
            pipe.send(message)
        except OSError as error:
            raise _died() from error

    def _receive(self, pipe: Connection) -> Any:
        try:
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            raise _died() from error
        if isinstance(answer, BaseException):
            raise answer
        return answer


def _died() -> FederationError:
    return FederationError(
        "a process of the simulation ended on its own", hint="is memory short? try fewer --workers"
    )


def _play(pipe: Connection, population_folder: Path, folder: Path, policy: str) -> None:
    """A player's life: until the parent closes the pipe or ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to see
    from .population import Population
    from .sites import SimulatedSites, quiet_sites

    with suppress(EOFError, BrokenPipeError, ConnectionResetError), quiet_sites():
        try:
            population = Population.load(population_folder)
            sites = SimulatedSites(folder, population.names, population.data, policy=policy)
            while True:
                _one_task(pipe, sites, pipe.recv())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except BaseException as error:  # anything else is the parent's to raise
            pipe.send(error)


def _one_task(pipe: Connection, sites: Any, task: tuple[Any, ...]) -> None:
    if task[0] == "identities":
        pipe.send([sites.identity_line(number) for number in task[1]])
        return
    _, (kind, settings, arrays), records = task
    batch = []
    for number, record in records:
        batch.append((number, sites.answer(number, kind, settings, arrays, record)))
        if len(batch) == REPLIES_AT_ONCE:
            pipe.send(batch)
            batch = []
    if batch:
        pipe.send(batch)
