"""What differential privacy a site has spent, and whether a run still fits under its cap.

Example-level privacy, at the site: one image of the site's training data is protected (add or remove
one) from whoever sees all the updates that ever left, the coordinator included. A round is charged to
the ledger before it is trained; a run is held against the cap as a whole before its first round:

    spent by all runs so far  +  num-server-rounds × (steps of a round)   ≤   max-epsilon at max-delta

Steps of a round are ⌈local-epochs / q⌉ with q = batch-size / N, as :mod:`instahide.dp_training` takes them.
Every charge counts for every image: a bound for those that were not there from the start.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left

from instahide.dp_training import noise_multiplier_for
from instahide.errors import RefusedError

from ..accounting import PrivacyCap, PrivacyEvent, epsilon_of
from ..messages import RoundRequest
from ..privacy_ledger import PrivacyLedger
from .policy import Policy

logger = logging.getLogger(__name__)


class SitePrivacy:
    """The site's ledger of differential privacy and the policy's cap over it."""

    def __init__(self, ledger: PrivacyLedger) -> None:
        self._ledger = ledger
        self._found: dict[tuple[float | int, ...], float] = {}

    def event_of(self, request: RoundRequest, *, num_examples: int, num_weights: int) -> PrivacyEvent:
        """What one round of ``request`` costs at a site of ``num_examples`` images."""
        rate = sample_rate(request, num_examples)
        num_steps = math.ceil(request.local_epochs / rate - 1e-9)
        noise_multiplier = request.noise_multiplier
        if request.target_epsilon:
            noise_multiplier = self._noise_for(request, rate, num_steps, num_weights)
        return PrivacyEvent(
            run_name=request.run_name,
            server_round=request.server_round,
            mechanism="dp-sgd",
            noise_multiplier=noise_multiplier,
            sample_rate=rate,
            num_steps=num_steps,
            num_draws=num_steps * num_weights,
        )

    def _noise_for(self, request: RoundRequest, rate: float, num_steps: int, num_weights: int) -> float:
        """The least noise with which all rounds of the run keep target-epsilon; found once."""
        all_steps = num_steps * request.num_server_rounds
        key = (request.target_epsilon, request.target_delta, rate, all_steps, num_weights)
        if key not in self._found:
            self._found[key] = noise_multiplier_for(
                request.target_epsilon, request.target_delta, rate, all_steps, num_weights=num_weights
            )
        return self._found[key]

    def admit(self, request: RoundRequest, event: PrivacyEvent, policy: Policy) -> None:
        """Return quietly if the round fits under the cap; before a run's first one, if the whole run does.

        Raises:
            RefusedError: it does not, with the figures.
            IntegrityError: the ledger is damaged.
        """
        if event.noise_multiplier < policy.minimum_noise_multiplier:
            raise RefusedError(
                f"target-epsilon {request.target_epsilon:g} takes a noise-multiplier of "
                f"{event.noise_multiplier:.3g} here, below this site's minimum",
                hint=f"at least {policy.minimum_noise_multiplier:g}: ask for a smaller target-epsilon",
            )
        if policy.max_epsilon is None:
            return
        cap = PrivacyCap(max_epsilon=policy.max_epsilon, delta=policy.max_delta)
        spent = self._ledger.events()
        has_begun = any(past.run_name == request.run_name for past in spent)
        rounds = 1 if has_begun else request.num_server_rounds - request.server_round + 1
        if cap.allows(spent, [event] * rounds):
            return
        what = "one more round" if has_begun else f"a run of {rounds} rounds"
        raise RefusedError(
            f"{what} would take this site to epsilon {_shown(cap.epsilon([*spent, *[event] * rounds]))} at "
            f"delta {policy.max_delta:g}; its cap is {policy.max_epsilon:g}, and it stands at "
            f"{_shown(cap.epsilon(spent))}",
            hint=_what_would_fit(cap, spent, event, rounds),
        )

    def charge(self, event: PrivacyEvent) -> None:
        """Record ``event`` on the disk; what it pays for may begin when this returns."""
        self._ledger.charge(event)

    def epsilon(self, run_name: str, delta: float) -> float:
        """ε of one run so far at ``delta``; infinite beyond 30."""
        return epsilon_of(self._ledger.events(run_name=run_name), delta)


def sample_rate(request: RoundRequest, num_examples: int) -> float:
    """q: the chance of each image to be in a step."""
    return min(1.0, request.batch_size / num_examples)


def _shown(epsilon: float) -> str:
    return f"{epsilon:.2f}" if math.isfinite(epsilon) else "infinity"


def _what_would_fit(
    cap: PrivacyCap, spent: tuple[PrivacyEvent, ...], event: PrivacyEvent, rounds: int
) -> str:
    fitting = bisect_left(
        range(1, rounds + 1), True, key=lambda count: not cap.allows(spent, [event] * count)
    )
    if fitting:
        return f"{fitting} such round(s) would fit; or raise noise-multiplier, or lower local-epochs"
    return (
        "raise noise-multiplier or lower local-epochs and batch-size, or ask the site about its max-epsilon"
    )
