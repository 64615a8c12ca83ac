"""Who was mixed with whom, from which encodings share an image: a line graph turned back into its graph.

Axes: m encodings, n private images.

With two private images in an encoding, images are vertices and encodings are edges; "encodings i and j
share an image" is adjacency in the line graph of that graph. By Whitney (1932) a connected graph is
determined by its line graph (but for the triangle and the claw), and by Krausz (1943) a line graph is one
whose edges split into cliques, the stars of the vertices, with every node in at most two of them.
Huang et al. (arXiv 2011.11877) use this to recover all images from O(n log n) encodings.

Textbook algorithms fail at the first wrong entry. Here adjacency comes from noisy inner products, so stars
are found by majority:

1. two adjacent encodings share a vertex v. Their common neighbours are the rest of the star of v and at
   most one encoding that closes a triangle; the star is a clique and the closing one is adjacent to none of
   it. Keep the common neighbours adjacent to most of the others;
2. take the largest star found, drop what it explains, and go on with the remaining adjacencies;
3. let every encoding choose the two stars whose members it resembles most, twice over.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Booleans = NDArray[np.bool_]
MAJORITY = 0.6
REFINEMENTS = 4


def stars_of_line_graph(adjacent: Booleans, *, least: int = 2) -> list[NDArray[np.int64]]:
    """Sets of encodings that share one image, largest first; every encoding in at most two.

    Args:
        adjacent: (m, m) symmetric, diagonal ignored.
        least: stars smaller than this are left out.
    """
    uncovered = adjacent.copy()
    np.fill_diagonal(uncovered, False)
    neighbours = uncovered.copy()
    memberships = np.zeros(len(adjacent), dtype=np.int64)
    stars: list[NDArray[np.int64]] = []
    while True:
        uncovered[memberships >= 2] = False
        uncovered[:, memberships >= 2] = False
        star = _largest_star(uncovered, neighbours, memberships)
        if len(star) < least:
            return stars
        stars.append(star)
        memberships[star] += 1
        uncovered[np.ix_(star, star)] = False


def _largest_star(
    uncovered: Booleans, neighbours: Booleans, memberships: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The best star through the encodings with the most uncovered adjacencies."""
    best = np.empty(0, dtype=np.int64)
    degrees = uncovered.sum(axis=1)
    for i in np.argsort(-degrees, kind="stable")[:5]:
        if degrees[i] == 0:
            break
        for j in np.flatnonzero(uncovered[i]):
            star = _star_through(int(i), int(j), uncovered, neighbours)
            if len(star) > len(best):
                best = star
    return best


def _star_through(i: int, j: int, uncovered: Booleans, neighbours: Booleans) -> NDArray[np.int64]:
    common = np.flatnonzero(uncovered[i] & uncovered[j])
    if len(common) > 1:
        inside = neighbours[np.ix_(common, common)].sum(axis=1)
        common = common[inside >= MAJORITY * (len(common) - 1) - 1e-9]
    if len(common) > 1:
        inside = neighbours[np.ix_(common, common)].sum(axis=1)
        common = common[inside >= MAJORITY * (len(common) - 1) - 1e-9]
    return np.sort(np.append(common, (i, j)))


def refine_stars(similarity: Array, stars: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """(m, 2) stars of every encoding by mean similarity to their members, the stronger one first; −1: none.

    Args:
        similarity: (m, m) inner products; the diagonal is ignored.
    """
    if not stars:
        return np.full((len(similarity), 2), -1)
    values = similarity.copy()
    np.fill_diagonal(values, 0.0)
    m = len(values)
    member = np.zeros((m, len(stars)))
    for index, star in enumerate(stars):
        member[star, index] = 1.0
    for _ in range(REFINEMENTS):
        counts = (member.sum(axis=0) - member).clip(1.0)  # without the encoding itself
        means = values @ member / counts
        chosen = np.argsort(-means, axis=1)[:, :2]
        updated = np.zeros_like(member)
        np.put_along_axis(updated, chosen, 1.0, axis=1)
        if (updated == member).all():
            break
        member = updated
    return chosen if chosen.shape[1] == 2 else np.pad(chosen, ((0, 0), (0, 1)), constant_values=-1)


def incidence(pairs: NDArray[np.int64], num_images: int, weights: Array | float = 1.0) -> Array:
    """(m, n) selection matrix of the pairs (m, 2); −1 selects nothing."""
    rows = np.zeros((len(pairs), num_images))
    values = np.broadcast_to(weights, pairs.shape)
    for column in range(pairs.shape[1]):
        there = pairs[:, column] >= 0
        rows[np.flatnonzero(there), pairs[there, column]] += values[there, column]
    return rows
