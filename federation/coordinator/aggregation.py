"""From the sites' weights to the next global model.

    fedavg         x ← Σ nᵢ xᵢ / Σ nᵢ                             (McMahan et al. 2017)
    fedprox        the same at the server; the sites add μ/2 ‖w − x‖²   (Li et al. 2020)
    fedadam        Δ = mean − x;  m ← β₁m + (1−β₁)Δ;  v ← β₂v + (1−β₂)Δ²
                   x ← x + ηₜ m / (√v + τ)                        (Reddi et al. 2021)
    median         coordinate-wise median of the xᵢ               (Yin et al. 2018)
    trimmed-mean   coordinate-wise mean without the f largest and f smallest (Yin et al. 2018)
    krum, multi-krum   the update, or the mean of the updates, with the closest neighbours: :mod:`.krum`

The last four ignore nᵢ: a bound on what one site can do is worth nothing if it can claim weight.

Same numbers as Flower's strategies (the tests hold them against each other), with two
differences: sums run in float64 over the sites in a fixed order, so that neither the order of
arrival nor a rejected site changes a single bit; and trimmed-mean drops at least one value at
either end, where Flower's rounds 0.2 × 3 sites down to none. ηₜ is Flower's bias-corrected step
η √(1 − β₂^(t+1)) / (1 − β₁^(t+1)) with t the round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from instahide.errors import FederationError, InvalidInputError

from ..messages import Arrays
from .validation import Update

Column = NDArray[np.float64]
ServerState = dict[str, Column]
COLUMNS_AT_ONCE = 65_536  # weights the robust rules hold side by side: half a megabyte a site


class Aggregator(Protocol):
    """A rule with whatever it carries from round to round (``state``, saved in checkpoints).

    ``left_out`` names the sites whose updates the last aggregate did not use.
    """

    state: ServerState
    left_out: list[str]

    def aggregate(self, server_round: int, current: Arrays, updates: Sequence[Update]) -> Arrays:
        """The next global model, float32, all finite. Raises FederationError if it is not."""


@dataclass
class Combine:
    """A rule without memory: each array of the next model from the sites' arrays of that name."""

    rule: Callable[[Sequence[Update], str], Column]
    state: ServerState = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def aggregate(self, server_round: int, current: Arrays, updates: Sequence[Update]) -> Arrays:
        """See :class:`Aggregator`."""
        ordered = in_fixed_order(updates)
        return {name: to_float32(name, self.rule(ordered, name)) for name in current}


@dataclass
class FedAdam:
    """Adam at the server, on the mean of the sites' changes (Reddi et al. 2021, algorithm 2)."""

    learning_rate: float
    beta_1: float
    beta_2: float
    tau: float
    state: ServerState = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def aggregate(self, server_round: int, current: Arrays, updates: Sequence[Update]) -> Arrays:
        """See :class:`Aggregator`."""
        ordered = in_fixed_order(updates)
        first, second = 1 - self.beta_1 ** (server_round + 1.0), 1 - self.beta_2 ** (server_round + 1.0)
        step = self.learning_rate * second**0.5 / first
        result: Arrays = {}
        state: ServerState = {}
        for name, array in current.items():
            change = weighted_mean(ordered, name) - array
            m = self.beta_1 * self._moment("m", name, array.shape) + (1 - self.beta_1) * change
            v = self.beta_2 * self._moment("v", name, array.shape) + (1 - self.beta_2) * change**2
            state |= {f"m/{name}": np.asarray(m), f"v/{name}": np.asarray(v)}
            result[name] = to_float32(name, array + step * m / (np.sqrt(v) + self.tau))
        self.state = state  # only now: a failed aggregation leaves the old moments
        return result

    def _moment(self, which: str, name: str, shape: tuple[int, ...]) -> Column:
        return self.state.get(f"{which}/{name}", np.zeros(shape))


def in_fixed_order(updates: Sequence[Update]) -> list[Update]:
    """By node id, whatever the order of arrival. Raises InvalidInputError for none at all."""
    if not updates:
        raise InvalidInputError(
            "there is no update to aggregate", hint="a round needs at least one valid update"
        )
    return sorted(updates, key=lambda update: update.node_id)


def weighted_mean(updates: Sequence[Update], name: str) -> Column:
    """Σ nᵢ xᵢ / Σ nᵢ of one array, in float64, in the order given."""
    total = sum(update.num_examples for update in updates)
    result = np.zeros(updates[0].arrays[name].shape)
    for update in updates:
        result += (update.num_examples / total) * update.arrays[name].astype(np.float64)
    return result


def coordinate_median(updates: Sequence[Update], name: str) -> Column:
    """Median over the sites of every weight of one array; the mean of the middle two if even."""
    return over_sites(updates, name, lambda stacked: np.median(stacked, axis=0))


def trimmed_mean(updates: Sequence[Update], name: str, *, fraction: float) -> Column:
    """Mean over the sites without the ``fraction`` largest and smallest values of every weight.

    At least one value goes at either end (unless ``fraction`` is 0), so three sites are needed.
    """
    count = len(updates)
    cut = max(1, int(fraction * count)) if fraction > 0.0 else 0
    if count <= 2 * cut:
        raise FederationError(
            f"trimmed-mean over {count} sites would drop them all",
            hint="raise minimum-sites or lower trim-fraction",
        )
    return over_sites(
        updates, name, lambda stacked: np.mean(np.sort(stacked, axis=0)[cut : count - cut], axis=0)
    )


def over_sites(updates: Sequence[Update], name: str, rule: Callable[[Column], Any]) -> Column:
    """``rule`` on (sites, weights) blocks of one array: memory for a block, not for all sites."""
    flat = [update.arrays[name].reshape(-1) for update in updates]
    result = np.empty(flat[0].shape)
    for start in range(0, result.size, COLUMNS_AT_ONCE):
        columns = slice(start, start + COLUMNS_AT_ONCE)
        result[columns] = rule(np.stack([array[columns].astype(np.float64) for array in flat]))
    return result.reshape(updates[0].arrays[name].shape)


def to_float32(name: str, array: Column) -> NDArray[np.float32]:
    """Round to float32; FederationError if a value is not finite there."""
    with np.errstate(over="ignore"):
        result = np.asarray(array, dtype=np.float32)
    if not np.isfinite(result).all():
        raise FederationError(
            f"the new global model is not finite in {name}",
            hint="lower learning-rate or server-learning-rate",
        )
    return result
