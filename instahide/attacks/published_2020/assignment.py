"""From groups to sources: which private images an encoding holds, and with which coefficients.

Axes: N encodings, m groups (one each private image), T releases, K classes, p prototypes of a set.

Published (steps 3 and 4 of the released programs, T = 50): each group gets ten sets of three prototypes,
drawn among the 21 encodings nearest to its core; the second network scores every encoding against every
set, and the ten scores are summed. Group after group then takes its 80 best encodings, if they carry the
group's class (the one most frequent among its 20 best) and have fewer than two owners yet. The coefficient
is read off the soft label; where both sources share the class only the sum is known, and each gets half.
(The paper solves a bipartite matching instead and calls the difference a percent or two.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError
from .cliques import GroupSizes

NUM_DRAWS = 10
NUM_OWNERS = 2


@dataclass(frozen=True, eq=False)
class Assignment:
    """Sources by group; −1 and 0 where fewer than two groups took an encoding.

    Args:
        private_rows: (N, 2) groups.
        coefficients: (N, 2) their λ.
        classes: (m,) class of each group.
    """

    private_rows: NDArray[np.int64]
    coefficients: NDArray[np.float64]
    classes: NDArray[np.int64]


def draw_prototypes(
    similarity: NDArray[np.float32],
    groups: NDArray[np.int64],
    releases: float,
    *,
    num_prototypes: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """(NUM_DRAWS, m, num_prototypes) encodings that stand for each group."""
    core = groups[:, : GroupSizes.of(releases).core]
    finite = np.where(np.isfinite(similarity), similarity, np.float32(0))
    nearness = np.stack([finite[members].sum(axis=0) for members in core])
    choices = min(_scaled(21, releases), len(similarity))
    nearest = np.argsort(-nearness, axis=1)[:, :choices]
    ranks = rng.integers(0, choices, (NUM_DRAWS, num_prototypes))
    return np.asarray(nearest[:, ranks].transpose(1, 0, 2))


def assign(
    scores: NDArray[np.float32], labels: NDArray[np.floating], releases: float, *, private_sum: float = 1.0
) -> Assignment:
    """The greedy assignment.

    Args:
        scores: (m, N), higher is likelier inside.
        labels: (N, K) soft labels as released.
        private_sum: what a row of labels is to sum to on average; labels that were renormalised to 1 are
            scaled by it, others (``compat``) already are the coefficients.
    """
    if scores.ndim != 2 or labels.ndim != 2 or scores.shape[1] != len(labels):
        raise InvalidInputError(
            f"scores of shape {scores.shape} and labels of shape {labels.shape}",
            hint="give scores (m, N) and labels (N, K)",
        )
    N = len(labels)
    rows = np.full((N, NUM_OWNERS), -1, dtype=np.int64)
    coefficients = np.zeros((N, NUM_OWNERS))
    owners = np.zeros(N, dtype=np.int64)
    classes = np.empty(len(scores), dtype=np.int64)
    carries = labels > 0
    shares_class = carries.sum(axis=1) == 1
    for group, score in enumerate(scores):
        order = np.argsort(-score, kind="stable")
        classes[group] = carries[order[: _scaled(20, releases)]].sum(axis=0).argmax()
        for encoding in order[: _scaled(80, releases)]:
            weight = float(labels[encoding, classes[group]])
            if weight <= 0 or owners[encoding] == NUM_OWNERS:
                continue
            rows[encoding, owners[encoding]] = group
            coefficients[encoding, owners[encoding]] = weight / 2 if shares_class[encoding] else weight
            owners[encoding] += 1
    return Assignment(rows, coefficients * private_sum, classes)


def _scaled(published: int, releases: float) -> int:
    """A number meant for T = 50, for T releases."""
    return max(2, round(published * releases / 50))
