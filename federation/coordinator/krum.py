"""Krum and Multi-Krum: keep the updates that have enough close neighbours (Blanchard et al. 2017).

Of n updates up to f may be malicious. With N(i) the n − f − 2 updates nearest to update i,

    s(i) = Σ_{j ∈ N(i)} ‖xᵢ − xⱼ‖²                                       (section 4 of the paper)

is large for whoever stands apart from the majority. Krum's next model is the update of the smallest score;
Multi-Krum's is the mean of the m smallest. Sound for n ≥ 2f + 3: then an honest update's neighbours hold an
honest majority. Claims of size are ignored: an update that may be malicious must not choose its own weight.

What it costs: an honest hospital whose images differ from the others' is left out like a malicious one,
every round.

‖xᵢ − xⱼ‖² is formed from xᵢ − x, x the model that was sent: updates stand close to x, and differences of
norms of whole models would lose their digits (Flower forms them in float32).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from instahide.errors import FederationError

from ..messages import Arrays
from .aggregation import ServerState, in_fixed_order, over_sites, to_float32
from .validation import Update

COLUMNS_AT_ONCE = 65_536


@dataclass
class Krum:
    """Multi-Krum; with ``num_nodes_to_select`` = 1, Krum.

    Args:
        num_malicious_nodes: f.
        num_nodes_to_select: m; 0 for all that can be trusted to be kept, n − f.
    """

    num_malicious_nodes: int
    num_nodes_to_select: int
    state: ServerState = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def aggregate(self, server_round: int, current: Arrays, updates: Sequence[Update]) -> Arrays:
        """See :class:`~.aggregation.Aggregator`.

        Raises:
            FederationError: fewer than 2f + 3 updates, or fewer than m.
        """
        ordered = in_fixed_order(updates)
        n, f = len(ordered), self.num_malicious_nodes
        if n < 2 * f + 3:
            raise FederationError(
                f"krum with num-malicious-nodes {f} needs {2 * f + 3} updates; {n} came",
                hint="raise minimum-sites, or lower num-malicious-nodes",
            )
        wanted = self.num_nodes_to_select or n - f
        if wanted > n - f:
            raise FederationError(
                f"num-nodes-to-select {wanted} of {n} updates would keep some of {f} malicious ones",
                hint=f"at most {n - f}",
            )
        scores = krum_scores(squared_distances(ordered, current), f)
        rows = set(np.argsort(scores, kind="stable")[:wanted].tolist())
        kept = [update for row, update in enumerate(ordered) if row in rows]
        self.left_out = [update.site_name for row, update in enumerate(ordered) if row not in rows]
        return {
            name: to_float32(name, over_sites(kept, name, lambda stacked: stacked.mean(axis=0)))
            for name in current
        }


def squared_distances(updates: Sequence[Update], centre: Arrays) -> NDArray[np.float64]:
    """(n, n) ‖xᵢ − xⱼ‖² over all weights, in float64, a block of weights at a time."""
    gram = np.zeros((len(updates), len(updates)))
    for name, array in centre.items():
        middle = array.reshape(-1)
        flat = [update.arrays[name].reshape(-1) for update in updates]
        for start in range(0, middle.size, COLUMNS_AT_ONCE):
            part = slice(start, start + COLUMNS_AT_ONCE)
            block = np.stack([row[part] for row in flat]).astype(np.float64) - middle[part]
            gram += block @ block.T
    norms = gram.diagonal()
    distances: NDArray[np.float64] = np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0.0)
    return distances


def krum_scores(distances: NDArray[np.float64], num_malicious_nodes: int) -> NDArray[np.float64]:
    """(n,) sum of the squared distances to the n − f − 2 nearest others."""
    n = len(distances)
    others = distances.copy()
    np.fill_diagonal(others, np.inf)
    nearest = np.sort(others, axis=1)[:, : n - num_malicious_nodes - 2]
    scores: NDArray[np.float64] = nearest.sum(axis=1)
    return scores
