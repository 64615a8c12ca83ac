"""Why the encoder refuses rows of a table: one encoding under the published law gives its coefficients away.

The attacker has one encoded row, |λ·X| after the sign mask is undone, and knows the columns' possible values,
as everybody who knows the table does. Three columns with two or three values, a guess at what the k = 4 mixed
rows have there and at three signs are k linear equations for λ; a guess is right if every other such column
can be explained, too.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from instahide.coefficients import draw_coefficients
from instahide.encoder_config import EncoderConfig
from instahide.randomness import Randomness

LEVELS = (2, 2, 2, 3, 3, 4, 4, 5)  # possible values of each column, as in the heart-disease tables
LAW = EncoderConfig(num_mixed=4, num_private=4, mode="compat")
FEW = [column for column, count in enumerate(LEVELS) if count <= 3]


def values(column: int) -> np.ndarray:
    """In 8 bits and then in the encoder's units, −1 to 1."""
    return np.rint(np.linspace(0, 255, LEVELS[column])) / 127.5 - 1


def guesses(column: int) -> np.ndarray:
    """(G, 4): every row of signs times values the four sources may have in a column."""
    found = np.array(list(itertools.product(values(column), repeat=4)))
    return np.unique(np.vstack([found, -found]), axis=0)


def candidates(encoded: np.ndarray) -> np.ndarray:
    """(S, 4): sorted coefficients that explain every column of |λ·X|."""
    found = []
    for columns in itertools.combinations(FEW, 3):
        grids = [guesses(column) for column in columns]
        grids[0] = grids[0][(np.diff(grids[0], axis=1) <= 0).all(1)]  # the sources' order is nothing
        chosen = np.stack(np.meshgrid(*(np.arange(len(g)) for g in grids), indexing="ij"), -1).reshape(-1, 3)
        if len(chosen) > 400_000:
            continue
        A = np.ones((len(chosen), 4, 4))
        for place, grid in enumerate(grids):
            A[:, place + 1] = grid[chosen[:, place]]
        A = A[np.abs(np.linalg.det(A)) > 1e-6]
        right = np.broadcast_to(np.array([1.0, *encoded[list(columns)]])[:, None], (len(A), 4, 1))
        solved = np.linalg.solve(A, right)[..., 0]
        solved = solved[((solved > 0) & (solved < 0.66)).all(1)]
        solved = np.unique(np.round(np.sort(solved, axis=1), 7), axis=0)
        for column in range(len(LEVELS)):
            explained = np.abs(solved @ guesses(column).T - encoded[column]).min(axis=1, initial=1.0)
            solved = solved[explained < 1e-5]
        found.append(solved)
    return np.unique(np.round(np.vstack(found), 5), axis=0)


# Measured: found in 89 of 100 encodings, one candidate left at the median, 0.17 s each. Were it 0.8 of all,
# fewer than 10 of 20 would be found with probability 6e-4; the median of candidates has far more room.
@pytest.mark.slow
@pytest.mark.statistical
def test_the_coefficients_of_one_encoded_row_are_found() -> None:
    rng = np.random.default_rng()
    stream = Randomness().stream("coefficients")
    found, left_over = 0, []
    for coefficients in draw_coefficients(stream, 20, LAW):
        rows = np.stack([rng.choice(values(column), 4) for column in range(len(LEVELS))], axis=1)
        encoded = np.abs((coefficients @ rows).astype(np.float32)).astype(np.float64)
        left = candidates(encoded)
        left_over.append(len(left))
        found += bool(len(left)) and bool(np.abs(left - np.sort(coefficients)).max(1).min() < 1e-3)
    assert found >= 10
    assert np.median(left_over) <= 10
