"""Groups of encodings that share a private image, grown greedily in the similarity graph.

Axes: N encodings, n private images, T = N/n releases, S seeds.

Published (step 2 of the released programs, N = 5,000, n = 100, T = 50): from each of 2,000 seeds a group
grows to 101 members; each time the encoding with the largest summed similarity to the members joins, except
the first, which is drawn among the 11 nearest. A group is kept when more than two groups contain all of its
first 50 members and it overlaps the kept ones by less than half; a second pass takes groups by their
first 25 members without asking for company. It stops at n groups. Here the same numbers scale with T and n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError

SEEDS_PER_IMAGE = 20
FIRST_CHOICES = 11
MIN_COMPANY = 2  # a group counts when more groups than this, itself among them, contain its core


@dataclass(frozen=True)
class GroupSizes:
    """The published numbers for T releases: 50 → core 50, fallback 25, grown 101."""

    core: int
    fallback: int
    grown: int

    @classmethod
    def of(cls, releases: float) -> GroupSizes:
        core = max(4, round(releases))
        return cls(core, core // 2, 2 * core + 1)


def grow_groups(
    similarity: NDArray[np.float32], seeds: NDArray[np.int64], size: int, *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """(S, size) members in the order they joined, the seed first.

    Args:
        similarity: (N, N), higher is more similar; the diagonal is not used.
        seeds: (S,) encodings to start from.
        size: members of a grown group, at most N.
    """
    N = len(similarity)
    if similarity.shape != (N, N) or not 2 <= size <= N:
        raise InvalidInputError(
            f"similarity of shape {similarity.shape} and groups of {size}",
            hint="give a square similarity and groups of 2 to N members",
        )
    groups = np.empty((len(seeds), size), dtype=np.int64)
    groups[:, 0] = seeds
    each = np.arange(len(seeds))
    total = similarity[seeds].astype(np.float32)
    total[each, seeds] = -np.inf  # −inf stays −inf: members never join again
    for count in range(1, size):
        if count == 1:
            nearest = np.argpartition(-total, min(FIRST_CHOICES, N - 1) - 1, axis=1)[:, :FIRST_CHOICES]
            joined = nearest[each, rng.integers(0, min(FIRST_CHOICES, N - 1), len(seeds))]
        else:
            joined = total.argmax(axis=1)
        groups[:, count] = joined
        for group, member in enumerate(joined):  # row by row: no second (S, N) array
            total[group] += np.where(np.isfinite(similarity[member]), similarity[member], 0)
        total[each, joined] = -np.inf
    return groups


def keep_distinct(groups: NDArray[np.int64], num_images: int, sizes: GroupSizes) -> NDArray[np.int64]:
    """Rows of ``groups`` kept, at most ``num_images``, in the order they were kept."""
    contains = np.zeros((len(groups), int(groups.max()) + 1), dtype=np.float32)
    np.put_along_axis(contains, groups, 1.0, axis=1)
    kept: list[int] = []
    for width, needs_company in ((sizes.core, True), (sizes.fallback, False)):
        core = np.zeros_like(contains)
        np.put_along_axis(core, groups[:, :width], 1.0, axis=1)
        company = ((core @ contains.T) >= width).sum(axis=1)
        for row in range(len(groups)):
            if len(kept) == num_images:
                return np.array(kept, dtype=np.int64)
            overlap = contains[kept] @ core[row] if kept else np.zeros(1)
            if (not needs_company or company[row] > MIN_COMPANY) and overlap.max() < width / 2:
                kept.append(row)
    return np.array(kept, dtype=np.int64)


def find_groups(similarity: NDArray[np.float32], num_images: int, *, seed: int) -> NDArray[np.int64]:
    """(m, grown) m ≤ n groups, members in the order they joined; ``seed`` is the attacker's."""
    N = len(similarity)
    sizes = GroupSizes.of(N / num_images)
    rng = np.random.default_rng(seed)
    seeds = np.arange(min(N, SEEDS_PER_IMAGE * num_images))
    groups = grow_groups(similarity, seeds, min(sizes.grown, N), rng=rng)
    return groups[keep_distinct(groups, num_images, sizes)]
