"""Sites that share the noise under secure aggregation, for the comparison of defences.

A round is what :mod:`.secure_aggregation` does to the sites' changes, less the masks, which cancel: every
site clips, rounds to whole levels and adds its discrete Gaussian share; the vectors are added in the ring
and the sum is decoded to the mean. Threshold, smallest sum and the sites whose noise is counted on are
those a run with ``confirm-survivors`` takes by itself (:func:`.hidden_sum.hidden_sum`): without signed
survivors a coordinator might open sums over fewer sites. All sites weigh the same. The noise
multiplier is the smallest that keeps the target.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instahide.attacks.frontier.client_level import ClientLevelPlan
from instahide.errors import InvalidInputError
from instahide.privacy_curves import bisect

from .hidden_sum import EQUAL_WEIGHT
from .secure_aggregation import AggregationParameters, QuantisationPlan
from .secure_aggregation.distributed_noise import (
    DistributedNoise,
    encode_private_update,
    reserve_noise,
)
from .secure_aggregation.quantisation import decode_sum

RING_BITS = 32


class NoiseOfSites:
    """See :class:`instahide.attacks.frontier.client_level.ClientNoise`.

    Raises:
        InvalidInputError: no noise that fits the ring keeps the target.
    """

    def __init__(self, plan: ClientLevelPlan) -> None:
        self._rounds, self._delta = plan.num_rounds, plan.target_delta
        self._bare = QuantisationPlan(
            vector_length=plan.num_weights,
            num_sites=plan.num_sites,
            coordinate_bound=plan.clip_norm,
            norm_bound=plan.clip_norm,
            max_examples=1,
            ring_bits=RING_BITS,
            counts=(EQUAL_WEIGHT,),
        )
        parameters = AggregationParameters.for_sites(
            plan.num_sites,
            vector_length=plan.num_weights,
            num_channels=self._bare.num_channels,
            ring_bits=RING_BITS,
            confirm_survivors=True,
        )
        self._honest = max(1, parameters.fewest_honest_sites(parameters.max_colluding_sites))
        z = bisect(lambda z: self._epsilon(z) <= plan.target_epsilon, relative=1e-3, low=1e-2)
        if not math.isfinite(z):
            raise InvalidInputError(
                f"no noise of {plan.num_sites} sites keeps epsilon {plan.target_epsilon:g}",
                hint="use a larger epsilon or fewer rounds",
            )
        self.noise_multiplier, self.epsilon = z, self._epsilon(z)
        self._noise, self._plan = self._at(z)
        self.share = self._noise.scale(self._plan) * self._plan.step / plan.clip_norm

    def mean(self, changes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """(D,): the decoded sum of the sites' noisy vectors over their number."""
        values = {EQUAL_WEIGHT: 1}
        encoded = [encode_private_update(self._plan, self._noise, change, values) for change in changes]
        vector = np.sum([site.vector for site in encoded], axis=0, dtype=f"u{RING_BITS // 8}")
        channels = np.stack([site.channels for site in encoded]).sum(axis=0, dtype=np.uint64)
        return decode_sum(self._plan, vector, channels, num_survivors=len(encoded)).mean

    def _at(self, noise_multiplier: float) -> tuple[DistributedNoise, QuantisationPlan]:
        noise = DistributedNoise(noise_multiplier=noise_multiplier, fewest_honest_sites=self._honest)
        return noise, reserve_noise(self._bare, noise)

    def _epsilon(self, noise_multiplier: float) -> float:
        try:
            noise, plan = self._at(noise_multiplier)
        except InvalidInputError:  # too little noise to be counted, or too much for the ring
            return math.inf
        return noise.epsilon(plan, self._rounds, self._delta)
