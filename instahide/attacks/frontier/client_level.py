"""Differential privacy of whole sites: the noisy mean of clipped changes, and the noise a target needs.

Axes: m sites, R rounds, D weights.

    mean = ( Σ_i Δ_i·min(1, C' / ‖Δ_i‖) + N(0, (z·C)²·I) ) / m            McMahan et al., ICLR 2018

C ``clip_norm``, Δ_i a site's change of the weights; z is the smallest that keeps the target over R rounds
with every site in each. One site's contribution is replaced by zero, so the sensitivity is C and a run
is R Gaussian releases (:mod:`instahide.privacy_curves`). C' is C less what rounding to the noise's grid
can add, z·C·√D / 2^14 (:mod:`instahide.integer_noise`).

Here a trusted coordinator adds the noise. Sites that add shares of it themselves under secure aggregation
need a protocol, which this package does not know: whoever has one hands in a :data:`MakeClientNoise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError
from ...integer_noise import MOST_EPSILON, add_noise, grid_step, ideal_delta
from ...privacy_curves import bisect, composed_epsilon
from ...randomness import Randomness

_MARGIN = 1e-9
"""Relative; covers float64 rounding of norms and sums."""


@dataclass(frozen=True, kw_only=True)
class ClientLevelPlan:
    """What the noise must be enough for: ε of one site at δ over all rounds."""

    num_sites: int
    num_weights: int
    num_rounds: int
    clip_norm: float
    target_epsilon: float
    target_delta: float


class ClientNoise(Protocol):
    """A way to make the noisy mean of one round.

    ``epsilon`` is of one site, over all rounds. ``share`` is the standard deviation, in units of the clipping
    norm, of what a site adds to its own change before anybody sees it: 0 where the coordinator adds.
    """

    epsilon: float
    share: float

    def mean(self, changes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """(D,) from the sites' changes (m, D)."""


MakeClientNoise = Callable[[ClientLevelPlan], ClientNoise]


class CoordinatorNoise:
    """Noise of a trusted coordinator, as the setting ``differential-privacy`` client has it.

    Raises:
        InvalidInputError: no noise keeps the target, or rounding would use up the clipping norm.
    """

    share = 0.0

    def __init__(self, plan: ClientLevelPlan) -> None:
        self._plan = plan
        z = bisect(lambda z: self._epsilon(z) <= plan.target_epsilon, relative=1e-3, low=1e-2)
        self._sd = z * plan.clip_norm
        rounding = grid_step("gaussian", self._sd) * math.sqrt(plan.num_weights)
        self._clip_to = (plan.clip_norm - rounding) * (1 - _MARGIN)
        if not math.isfinite(z) or self._clip_to <= 0:
            raise InvalidInputError(
                f"no noise keeps epsilon {plan.target_epsilon:g} of a site with {plan.num_weights:,} weights",
                hint="use a larger epsilon, fewer rounds or a smaller model",
            )
        self.noise_multiplier, self.epsilon = z, self._epsilon(z)
        self._stream = Randomness().stream("noise")

    def mean(self, changes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """See :class:`ClientNoise`."""
        total = np.zeros(self._plan.num_weights)
        for change in np.asarray(changes, dtype=np.float64):
            total += change * min(1.0, self._clip_to / max(math.sqrt(float(change @ change)), 1e-300))
        return add_noise(self._stream, total, "gaussian", self._sd) / len(changes)

    def _epsilon(self, noise_multiplier: float) -> float:
        plan = self._plan
        delta, extra = ideal_delta(plan.num_rounds * plan.num_weights, plan.target_delta)
        epsilon = composed_epsilon(((noise_multiplier, 1.0, plan.num_rounds),), delta) + extra
        return epsilon if epsilon <= MOST_EPSILON else math.inf
