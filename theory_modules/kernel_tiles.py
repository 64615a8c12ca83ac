"""A kernel matrix in pieces: which rows meet which columns, over threads, with progress, to memory or to a
file.

A piece is a block of columns (as many as a vector has lanes) against a run of rows. Of a symmetric matrix
only the pieces that meet the diagonal or lie above it are computed; each is written to its place and to its
mirror image. Threads are enough: the work is done outside the interpreter. A piece is short (under a second),
so an interrupt is obeyed at once, and a file knows after every run of rows which of them are done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Progress = Callable[[int, int], None]  # pairs done, pairs in all


@dataclass(frozen=True)
class Piece:
    """Rows i0 .. i1 against columns j0 .. j1."""

    i0: int
    i1: int
    j0: int
    j1: int

    @property
    def pairs(self) -> int:
        return (self.i1 - self.i0) * (self.j1 - self.j0)


@dataclass(frozen=True)
class Plan:
    """How an (N1, N2) matrix is cut; rows come in panels, which are prepared once for all their columns."""

    shape: tuple[int, int]
    symmetric: bool
    lanes: int
    rows_per_panel: int
    rows_per_piece: int

    def panels(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self.shape[0], self.rows_per_panel):
            yield first, min(first + self.rows_per_panel, self.shape[0])

    def blocks(self, panel: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Blocks of columns that meet a panel; of a symmetric matrix none that lies left of it."""
        start = panel[0] // self.lanes * self.lanes if self.symmetric else 0
        for j0 in range(start, self.shape[1], self.lanes):
            yield j0, min(j0 + self.lanes, self.shape[1])

    def pieces(self, panel: tuple[int, int], block: tuple[int, int]) -> Iterator[Piece]:
        last = min(panel[1], block[1]) if self.symmetric else panel[1]
        for i0 in range(panel[0], last, self.rows_per_piece):
            yield Piece(i0, min(i0 + self.rows_per_piece, last), *block)

    def total(self) -> int:
        return sum(
            piece.pairs
            for panel in self.panels()
            for block in self.blocks(panel)
            for piece in self.pieces(panel, block)
        )


def write(out: NDArray[np.floating], piece: Piece, values: NDArray[np.float64], symmetric: bool) -> None:
    """A piece at its place and, of a symmetric matrix, at its mirror image.

    Where a piece crosses the diagonal only the part on and above it counts, so that the matrix is symmetric
    to the last bit.
    """
    if not symmetric:
        out[piece.i0 : piece.i1, piece.j0 : piece.j1] = values
        return
    above = np.arange(piece.i0, piece.i1)[:, None] <= np.arange(piece.j0, piece.j1)
    if above.all():
        out[piece.i0 : piece.i1, piece.j0 : piece.j1] = values
        out[piece.j0 : piece.j1, piece.i0 : piece.i1] = values.T
        return
    rows, columns = above.nonzero()
    i, j = rows + piece.i0, columns + piece.j0
    out[i, j] = values[rows, columns]
    out[j, i] = values[rows, columns]


class Workers:
    """A few threads with one torch thread each; leaves at once when interrupted."""

    def __init__(self, num_threads: int) -> None:
        self._before = torch.get_num_threads()
        self.stopping = threading.Event()  # a job looks at it between two pieces
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *reason: object) -> None:
        self.stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._before)

    def each(self, job: Callable[[tuple[int, int]], None], blocks: Iterator[tuple[int, int]]) -> None:
        """``job`` on every block, a few ahead of what is done, so that memory stays bounded."""
        running: set[Future[None]] = set()
        for block in blocks:
            running.add(self._pool.submit(job, block))
            if len(running) >= 2 * self._num_threads:
                running = self._some_done(running)
        while running:
            running = self._some_done(running)

    def _some_done(self, running: set[Future[None]]) -> set[Future[None]]:
        done, left = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        return set(left)
