"""What a site, or a run, has spent: epsilon over rounds and runs whose settings differ.

Every round that trains with differential privacy is one :class:`PrivacyEvent`: T releases of a sum of
clipped vectors under Gaussian noise of z clipping norms, each image (or site) sampled with
probability q. Events compose:

    spent = epsilon(δ) of the composed privacy loss distributions       (dp-accounting, an upper bound)

with Rényi moments and Opacus' PRV accountant as other methods. ``num_draws`` numbers of noise were drawn;
the sampler's own error (:mod:`instahide.integer_noise`) is inside the figures. Nothing is claimed beyond
an epsilon of 30.

**A cap needs more care than a sum.** Composition theorems speak of parameters fixed in advance. Over a
site's life the coordinator chooses the next run after it has seen the last one's weights. For such choices a
Rényi filter holds (Feldman and Zrnic, NeurIPS 2021, theorem 4.3): stop before Σ D_α would exceed a budget at
one order α that was fixed beforehand. :class:`PrivacyCap` fixes α as the order at which the cap
would last longest under the *first* event, and asks

    Σ D_α(event) + log(1 − 1/α) − log(δα)/(α − 1)  ≤  max_epsilon        (Canonne et al. 2020, proposition 12)

This figure is somewhat above ``spent``, most of all while little is spent: it is what the cap is
held against, and ``spent`` is what is reported. Neither figure says anything about InstaHide's
encodings, which have no epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from instahide.errors import InvalidInputError
from instahide.integer_noise import MOST_EPSILON, ideal_delta
from instahide.privacy_curves import (
    check_delta,
    composed_epsilon,
    rdp_to_epsilon,
    sampled_gaussian_rdp,
)

MECHANISMS: Final = ("dp-sgd", "encoding", "client")
"""Noise in a training step, in an encoding (mode ``dp``), in the mean of the sites' updates."""
ORDERS: Final[tuple[int, ...]] = (*range(2, 33), 40, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True, kw_only=True)
class PrivacyEvent:
    """One round's charge.

    Args:
        run_name, server_round: what it was for.
        mechanism: one of ``MECHANISMS``.
        noise_multiplier: z, the noise's standard deviation over the sensitivity.
        sample_rate: q; 1 where everybody takes part.
        num_steps: T, releases.
        num_draws: numbers of noise drawn in all of them.

    Raises:
        InvalidInputError: a value outside its range.
    """

    run_name: str
    server_round: int
    mechanism: str
    noise_multiplier: float
    sample_rate: float
    num_steps: int
    num_draws: int

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "sample_rate"):
            object.__setattr__(self, name, float(getattr(self, name)))  # as it comes back from a file
        good = (
            self.mechanism in MECHANISMS
            and 0 < self.noise_multiplier < math.inf
            and 0 < self.sample_rate <= 1
            and min(self.num_steps, self.num_draws, self.server_round) >= 1
        )
        if not good:
            raise InvalidInputError(
                f"{self} is no privacy event", hint="use positive numbers and a rate up to 1"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def epsilon_of(events: Sequence[PrivacyEvent], delta: float, *, method: str = "pld") -> float:
    """ε at ``delta`` of all events together; infinite beyond 30, 0 without events.

    Args:
        method: ``"pld"`` (what is claimed), ``"rdp"`` or ``"prv"``.

    Raises:
        InvalidInputError: a delta outside (0, 1), an unknown method, or dp-accounting is missing.
    """
    check_delta(delta)
    if not events:
        return 0.0
    ideal, extra = ideal_delta(sum(event.num_draws for event in events), delta)
    if ideal <= 0:
        return math.inf
    parts = [(event.noise_multiplier, event.sample_rate, event.num_steps) for event in events]
    epsilon = composed_epsilon(parts, ideal, method=method) + extra
    return max(0.0, epsilon) if epsilon <= MOST_EPSILON else math.inf


@dataclass(frozen=True, kw_only=True)
class PrivacyCap:
    """A site's cap over all its runs, safe for parameters that are chosen as it goes.

    Args:
        max_epsilon, delta: what the whole life of the site's images may come to.
    """

    max_epsilon: float
    delta: float

    def epsilon(self, events: Sequence[PrivacyEvent]) -> float:
        """What is held against ``max_epsilon``: ε at the order fixed by the first event; 0 without events."""
        if not events:
            return 0.0
        ideal, extra = ideal_delta(sum(event.num_draws for event in events), self.delta)
        if ideal <= 0:
            return math.inf
        order = self.order(events[0])
        return max(0.0, rdp_to_epsilon(divergence_of(events, order), order, ideal) + extra)

    def allows(self, spent: Sequence[PrivacyEvent], planned: Sequence[PrivacyEvent]) -> bool:
        """Whether ``planned`` may follow ``spent``."""
        return self.epsilon([*spent, *planned]) <= self.max_epsilon

    def order(self, first: PrivacyEvent) -> int:
        """The whole order at which most events like ``first`` fit under the cap."""

        def lasting(order: int) -> float:
            room = self.max_epsilon - rdp_to_epsilon(0.0, order, self.delta)
            return room / sampled_gaussian_rdp(first.noise_multiplier, first.sample_rate, order)

        return max(ORDERS, key=lasting)


def divergence_of(events: Sequence[PrivacyEvent], order: int) -> float:
    """Σ D_α of the events at one whole order α."""
    kinds: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.noise_multiplier, event.sample_rate)
        kinds[key] = kinds.get(key, 0) + event.num_steps
    return math.fsum(steps * sampled_gaussian_rdp(z, q, order) for (z, q), steps in kinds.items())
