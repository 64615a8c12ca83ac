"""Images from |W·x + p| when W is known: one sign per encoding and feature is missing.

Axes: m encodings, n images, d features.

For each feature, y_i = |x_a + x_b + p_i| over the edges i = {a, b} of a graph, p the known public part
(Huang et al., arXiv 2011.11877: least squares with hidden signs, hard in the worst case). On generic
values it is not hard, since every even cycle is a check: along a–c–b–e the alternating sum of the signed y
(less p) vanishes, and of its sign patterns only the true one makes it so. So start at a diamond, a cycle
a–c–b–e with the chord ab: the cycle fixes its signs (without p up to a common flip), and the chord, whose
sign it leaves open, gives the values. That leaves two candidates up to x → −x, four with a public part.
Each is carried to the other vertices, one at a time: a vertex with two or more known neighbours has two
candidates from the first equation, and the other equations decide. The candidate with the smaller
residual wins. The order is the graph's, so all d features are solved side by side. At the end signs are
taken from the solution and the least-squares system is solved once more, until signs no longer change;
that is also what averages noise. Equations that the carried solution misses by far were paired wrongly and
are left out there.

Without a public part x and −x fit equally well, feature by feature; ``p = 0`` gives x up to d signs.
"""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from .line_graph import incidence

Array = NDArray[np.float64]
MAX_POLISH = 30
MAX_DIAMONDS = 2
BRANCHES = ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))  # signs of the equations ab and ac
MAX_CHECKS = 8  # known neighbours that are asked
OUTLIER = 8.0  # times the median miss: an equation with the wrong pair
EXACT = 1e-6  # root mean square of the residual, relative, below which a feature is solved


def solve_signed_regression(
    pairs: NDArray[np.int64], magnitudes: Array, *, num_images: int, public_part: Array | None = None
) -> Array:
    """(n, d) images; rows of images that the equations do not reach are NaN.

    Args:
        pairs: (m, 2) images of each encoding, equal weights 1.
        magnitudes: (m, d) y.
        public_part: (m, d) p, in the units of y; default 0.
    """
    p = np.zeros_like(magnitudes) if public_part is None else public_part
    edges = _edges_by_pair(pairs)
    best = np.full((num_images, magnitudes.shape[1]), np.nan)
    error = np.full(magnitudes.shape[1], np.inf)
    branches = BRANCHES[:2] if public_part is None else BRANCHES
    exact = (EXACT * magnitudes.mean()) ** 2
    for start, branch in product(_diamonds(edges, num_images), branches):
        left = np.flatnonzero(~(error < exact))
        if len(left) == 0:
            break
        y, known = magnitudes[:, left], p[:, left]
        x = _propagate(start, branch, edges, y, known, num_images)
        x = _polish(x, pairs, y, known)
        remaining = _residual(x, pairs, y, known)
        better = (remaining < error[left]) | ~np.isfinite(error[left])
        best[:, left[better]], error[left[better]] = x[:, better], remaining[better]
    return best


def _edges_by_pair(pairs: NDArray[np.int64]) -> dict[tuple[int, int], int]:
    """One encoding for every pair of different images."""
    return {(min(a, b), max(a, b)): i for i, (a, b) in enumerate(pairs.tolist()) if a != b and min(a, b) >= 0}


def _neighbours(edges: dict[tuple[int, int], int], n: int) -> list[dict[int, int]]:
    found: list[dict[int, int]] = [{} for _ in range(n)]
    for (a, b), i in edges.items():
        found[a][b] = i
        found[b][a] = i
    return found


def _diamonds(edges: dict[tuple[int, int], int], n: int) -> list[tuple[int, int, int, int]]:
    """Up to four a, b, c, e with the edges ab, ac, bc, ae, be; dense neighbourhoods first."""
    near = _neighbours(edges, n)
    found: list[tuple[int, int, int, int]] = []
    for a, b in sorted(edges, key=lambda ab: -len(near[ab[0]].keys() & near[ab[1]].keys())):
        common = sorted(near[a].keys() & near[b].keys(), key=lambda v: -len(near[v]))
        for c, e in combinations(common[:3], 2):
            found.append((a, b, c, e))
            if len(found) == MAX_DIAMONDS:
                return found
    return found


def _propagate(
    start: tuple[int, int, int, int],
    branch: tuple[float, float],
    edges: dict[tuple[int, int], int],
    y: Array,
    p: Array,
    n: int,
) -> Array:
    near = _neighbours(edges, n)
    x = np.full((n, y.shape[1]), np.nan)
    x[list(start)] = _solve_diamond(start, branch, near, y, p)
    known = set(start)
    reach = {v: [u for u in near[v] if u in known] for v in range(n) if v not in known}
    while reach:
        vertex = max(reach, key=lambda v: len(reach[v]))
        others = reach.pop(vertex)
        if not others:
            break
        x[vertex] = _from_known([near[vertex][u] for u in others], x[others], y, p)
        known.add(vertex)
        for u in near[vertex]:
            if u in reach:
                reach[u].append(vertex)
    return x


def _solve_diamond(
    start: tuple[int, int, int, int],
    branch: tuple[float, float],
    near: list[dict[int, int]],
    y: Array,
    p: Array,
) -> Array:
    """(4, d) values of the four vertices, given the signs of the equations ab and ac."""
    a, b, c, e = start
    rows = [near[a][b], near[a][c], near[b][c], near[a][e], near[b][e]]
    system = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]], dtype=float)
    inverse = np.linalg.pinv(system)
    best, error = np.zeros((4, y.shape[1])), np.full(y.shape[1], np.inf)
    for others in product((1.0, -1.0), repeat=3):
        right = np.array((*branch, *others))[:, None] * y[rows] - p[rows]
        x = inverse @ right
        miss = np.square(system @ x - right).sum(axis=0)
        better = miss < error
        best[:, better], error[better] = x[:, better], miss[better]
    return best


def _from_known(rows: list[int], known: Array, y: Array, p: Array) -> Array:
    """A vertex from its known neighbours: of ±y − p − x_u, over all u, the value the equations agree on."""
    rows, known = rows[:MAX_CHECKS], known[:MAX_CHECKS]
    plus, minus = y[rows] - p[rows] - known, -y[rows] - p[rows] - known
    candidates = np.concatenate([plus, minus])  # (2·count, d)
    miss = np.minimum(np.abs(candidates[:, None] - plus), np.abs(candidates[:, None] - minus)).sum(axis=1)
    return np.asarray(np.take_along_axis(candidates, miss.argmin(axis=0)[None], axis=0)[0])


def _polish(x: Array, pairs: NDArray[np.int64], y: Array, p: Array) -> Array:
    """Least squares with the signs of the current solution, until they stay."""
    usable = (pairs >= 0).all(axis=1) & np.isfinite(x[:, 0])[np.maximum(pairs, 0)].all(axis=1)
    if not usable.any():
        return x
    miss = np.full(len(pairs), np.inf)
    fit = x[pairs[usable, 0]] + x[pairs[usable, 1]] + p[usable]
    miss[usable] = np.median(np.abs(np.abs(fit) - y[usable]), axis=1)
    usable &= miss <= OUTLIER * np.median(miss[usable]) + EXACT * y.mean()
    reached = np.flatnonzero(np.isfinite(x[:, 0]))
    system = incidence(pairs[usable], len(x))[:, reached]
    inverse = np.linalg.pinv(system)
    y, p = y[usable], p[usable]
    solution = x[reached]
    signs = np.where(system @ solution + p >= 0, 1.0, -1.0)
    for _ in range(MAX_POLISH):
        solution = inverse @ (signs * y - p)
        updated = np.where(system @ solution + p >= 0, 1.0, -1.0)
        if (updated == signs).all():
            break
        signs = updated
    result = np.full_like(x, np.nan)
    result[reached] = solution
    return result


def _residual(x: Array, pairs: NDArray[np.int64], y: Array, p: Array) -> Array:
    there = (pairs >= 0).all(axis=1)
    fit = x[pairs[there, 0]] + x[pairs[there, 1]] + p[there]
    miss = np.square(np.abs(fit) - y[there])
    reached = np.isfinite(miss[:, 0])
    return np.asarray(miss[reached].mean(axis=0) if reached.any() else np.full(y.shape[1], np.inf))
