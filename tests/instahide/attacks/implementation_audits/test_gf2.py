from __future__ import annotations

import numpy as np
import pytest

from instahide.attacks.implementation_audits.gf2 import pack_rows, solve


def system(equations: int, unknowns: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 2, (equations, unknowns), dtype=np.uint8)
    truth = rng.integers(0, 2, unknowns, dtype=np.uint8)
    return rows, truth, (rows.astype(np.int64) @ truth % 2).astype(np.uint8)


def rank_one_column_at_a_time(rows: np.ndarray) -> int:
    """Textbook elimination, the oracle."""
    left, rank = rows.astype(bool).copy(), 0
    for column in range(left.shape[1]):
        below = np.flatnonzero(left[rank:, column]) + rank
        if below.size:
            left[[rank, below[0]]] = left[[below[0], rank]]
            others = np.flatnonzero(left[:, column])
            left[others[others != rank]] ^= left[rank]
            rank += 1
    return rank


@pytest.mark.parametrize(("equations", "unknowns"), [(40, 5), (90, 63), (150, 64), (300, 200), (1500, 1400)])
def test_a_full_system_has_its_one_solution(equations: int, unknowns: int) -> None:
    rows, truth, right = system(equations, unknowns, seed=unknowns)
    solution = solve(pack_rows(rows, right), unknowns)
    assert solution.rank == rank_one_column_at_a_time(rows) if unknowns < 1000 else unknowns
    assert solution.bits is not None
    np.testing.assert_array_equal(rows.astype(np.int64) @ solution.bits % 2, right)
    if solution.rank == unknowns:
        np.testing.assert_array_equal(solution.bits, truth)


@pytest.mark.parametrize("seed", range(5))
def test_rank_and_solution_of_a_thin_system_are_right(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, _, _ = system(60, 100, seed)
    rows = np.concatenate([rows, rows[rng.permutation(60)] ^ rows[:60]])  # dependent rows
    rows[:, rng.integers(0, 100, 20)] = 0
    truth = rng.integers(0, 2, 100, dtype=np.uint8)
    right = (rows.astype(np.int64) @ truth % 2).astype(np.uint8)
    solution = solve(pack_rows(rows, right), 100)
    assert solution.rank == rank_one_column_at_a_time(rows)
    assert solution.bits is not None
    np.testing.assert_array_equal(rows.astype(np.int64) @ solution.bits % 2, right)


def test_equations_that_contradict_each_other_are_counted() -> None:
    rows, _, right = system(300, 200, seed=9)
    right[250] ^= 1
    solution = solve(pack_rows(rows, right), 200)
    assert solution.bits is None
    assert solution.contradictions >= 1
