"""Linear equations over GF(2), packed 64 to a machine word.

Axes: E equations, U unknowns, W = ⌈(U + 1) / 64⌉ words of a row, right-hand side included.

Gaussian elimination by blocks of 64 columns, with tables as in the method of the Four Russians (Arlazarov
et al. 1970). In a block the pivots are found on one word a row; what every other row must take from the
64 pivot rows is one 64-bit number, so its eight bytes pick from eight tables of 256 sums of pivot rows,
and the whole rest of the matrix is updated by eight look-ups a word instead of 64 passes. The cost is
E·U²/(64·24) look-ups of words: 20,000 unknowns take seconds in numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STRIP_WORDS = 32  # columns updated together: eight tables of 256 rows then take 512 KiB, a cache's worth
_CHUNK_ROWS = 512

Packed = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Solution:
    """What a system says about its unknowns.

    Args:
        bits: (U,) one solution, free unknowns 0; ``None`` if there is none.
        rank: number of independent equations.
        contradictions: equations left that read 0 = 1; with E − rank of them checked, about half if the
            right-hand side is random, none if the system holds.
    """

    bits: NDArray[np.uint8] | None
    rank: int
    contradictions: int


def pack_rows(rows: NDArray[np.uint8], right: NDArray[np.uint8]) -> Packed:
    """(E, W) words from (E, U) of 0 and 1; the right-hand side is column U."""
    E, U = rows.shape
    padded = np.zeros((E, -(-(U + 1) // 64) * 64), dtype=np.uint8)
    padded[:, :U] = rows
    padded[:, U] = right
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64, copy=False)


def solve(matrix: Packed, unknowns: int, *, progress: Callable[..., None] | None = None) -> Solution:
    """Solve packed equations; ``matrix`` is used up."""
    E, W = matrix.shape
    order = np.arange(E)  # row number of the matrix at each place: pivots move to the front
    pivot_columns: list[int] = []
    for word in range(W):
        if progress is not None:
            progress(word, W, "eliminating")
        columns = min(64, unknowns - 64 * word)
        if columns <= 0:
            break
        rank = len(pivot_columns)
        rest = order[rank:]
        if not rest.size:
            break
        column, takes, found = _block_pivots(matrix[rest, word], columns)
        if not found:
            continue
        places = np.array([place for place, _ in found])
        pivot_columns += [64 * word + bit for _, bit in found]
        pivots = rest[places]
        _update(matrix, rest, pivots, takes, word + 1)
        matrix[rest, word] = column
        others = np.ones(len(rest), dtype=bool)
        others[places] = False
        order[rank:] = np.concatenate([pivots, rest[others]])
    rank = len(pivot_columns)
    at, shift = divmod(unknowns, 64)
    contradictions = int((matrix[order[rank:], at] >> np.uint64(shift) & np.uint64(1)).sum())
    if contradictions:
        return Solution(None, rank, contradictions)
    return Solution(_back_substitute(matrix, order[:rank], pivot_columns, unknowns), rank, 0)


def _block_pivots(column: Packed, num_columns: int) -> tuple[Packed, Packed, list[tuple[int, int]]]:
    """Eliminate within one word column.

    Returns the column after elimination; for each row the pivots it takes, as bits in the order of the
    pivots found (for a pivot row: without itself); and the pivots as (place, bit).
    """
    column = column.copy()
    takes = np.zeros(len(column), dtype=np.uint64)
    used = np.zeros(len(column), dtype=bool)
    found: list[tuple[int, int]] = []
    for bit in range(num_columns):
        has = (column >> np.uint64(bit) & np.uint64(1)).astype(bool)
        candidates = np.flatnonzero(has & ~used)
        if not candidates.size:
            continue
        place = int(candidates[0])
        # The pivot as a sum of original rows: itself and what it took so far.
        as_sum = takes[place] ^ (np.uint64(1) << np.uint64(len(found)))
        has[place] = False
        flags = has.astype(np.uint64)
        column ^= flags * column[place]
        takes ^= flags * as_sum
        used[place] = True
        found.append((place, bit))
    return column, takes, found


def _update(
    matrix: Packed, rest: NDArray[np.int64], pivots: NDArray[np.int64], takes: Packed, first: int
) -> None:
    """Add to every row in ``rest`` the original pivot rows it takes, from word ``first`` on."""
    by_byte = takes.view(np.uint8).reshape(len(takes), 8)  # byte t holds pivots 8t..8t+7 (little-endian)
    for start in range(first, matrix.shape[1], _STRIP_WORDS):
        strip = slice(start, min(start + _STRIP_WORDS, matrix.shape[1]))
        tables = _tables(matrix[pivots, strip])
        width = strip.stop - strip.start
        buffer = np.empty((_CHUNK_ROWS, width), dtype=np.uint64)
        for top in range(0, len(rest), _CHUNK_ROWS):
            rows = rest[top : top + _CHUNK_ROWS]
            part, scratch = matrix[rows, strip], buffer[: len(rows)]
            for t, table in enumerate(tables):
                np.take(table, by_byte[top : top + _CHUNK_ROWS, t], axis=0, out=scratch, mode="clip")
                np.bitwise_xor(part, scratch, out=part)
            matrix[rows, strip] = part


def _tables(pivot_rows: Packed) -> list[Packed]:
    """For each eight pivot rows, their 256 sums."""
    tables = []
    for start in range(0, len(pivot_rows), 8):
        group = pivot_rows[start : start + 8]
        table = np.zeros((256, group.shape[1]), dtype=np.uint64)
        for i, row in enumerate(group):
            np.bitwise_xor(table[: 1 << i], row, out=table[1 << i : 2 << i])
        tables.append(table)
    return tables


def _back_substitute(
    matrix: Packed, pivots: NDArray[np.int64], columns: list[int], unknowns: int
) -> NDArray[np.uint8]:
    """Pivot unknowns from the last to the first; each row's word of its own block is already reduced."""
    known = np.zeros(matrix.shape[1], dtype=np.uint64)
    at, shift = divmod(unknowns, 64)
    known[at] |= np.uint64(1) << np.uint64(shift)  # the right-hand side, as an unknown that is 1
    for row, column in zip(pivots[::-1], columns[::-1], strict=True):
        word, bit = divmod(column, 64)
        both = matrix[row, word:] & known[word:]
        if int(np.bitwise_count(both).sum()) & 1:
            known[word] |= np.uint64(1) << np.uint64(bit)
    return np.unpackbits(known.view(np.uint8), bitorder="little")[:unknowns].copy()
