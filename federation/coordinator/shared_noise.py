"""Client-level privacy without a trusted coordinator: the sites' own noise is in the sum it opens.

Under secure aggregation the coordinator cannot clip or add noise, and need not: each site has clipped,
rounded and added its share (:mod:`federation.secure_aggregation.distributed_noise`). Here every mean that
is made of such a sum is charged to the ledger in the run directory, and the guarantee worked out for the
model card, with the noise and plan that both ends derived from the run's settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..accounting import PrivacyEvent
from ..config import RunConfig
from ..hidden_sum import hidden_sum
from ..messages import Arrays
from ..privacy_ledger import LEDGER_NAME, PrivacyLedger
from ..secure_aggregation.distributed_noise import DistributedNoise
from ..secure_aggregation.quantisation import QuantisationPlan
from .aggregation import Aggregator
from .client_privacy import AroundRule, ClientGuarantee, with_client_privacy
from .validation import Update


@dataclass
class SharedNoise(AroundRule):
    """The rule ``inner`` on means that carry the sites' noise already; each is charged first."""

    inner: Aggregator
    run_name: str
    noise: DistributedNoise
    plan: QuantisationPlan
    ledger: PrivacyLedger

    def aggregate(self, server_round: int, current: Arrays, updates: Sequence[Update]) -> Arrays:
        """See :class:`Aggregator`; the release is on the ledger before this returns."""
        self.ledger.charge(
            PrivacyEvent(
                run_name=self.run_name,
                server_round=server_round,
                mechanism="client",
                noise_multiplier=self.noise.noise_multiplier,
                sample_rate=1.0,
                num_steps=1,
                num_draws=self.plan.vector_length * self.plan.num_sites,
            )
        )
        return self.inner.aggregate(server_round, current, updates)

    def guarantee(self, target_delta: float) -> ClientGuarantee:
        """What all sums of the run so far come to, those before a resume included."""
        releases = len(self.ledger.events(run_name=self.run_name))
        return ClientGuarantee(
            epsilon=self.noise.epsilon(self.plan, releases, target_delta) if releases else 0.0,
            delta=target_delta,
            num_releases=releases,
            noise_multiplier=self.noise.noise_multiplier,
            clip_norm=self.plan.norm_bound,
            num_weights=self.plan.vector_length,
            fewest_honest_sites=self.noise.fewest_honest_sites,
        )


def with_noise(inner: Aggregator, config: RunConfig, folder: Path, weights: Arrays) -> Aggregator:
    """``inner`` itself or, with client-level privacy, on means with noise: the coordinator's or the sites'.

    Raises:
        InvalidInputError: the noise does not fit the model's size or the ring.
        IntegrityError: the ledger in ``folder`` is damaged.
    """
    if config.differential_privacy != "client" or not config.secure_aggregation:
        return with_client_privacy(inner, config, folder, weights)
    agreed = hidden_sum(config, sum(array.size for array in weights.values()))
    assert agreed.noise is not None
    return SharedNoise(
        inner=inner,
        run_name=config.run_name,
        noise=agreed.noise,
        plan=agreed.plan,
        ledger=PrivacyLedger(folder / LEDGER_NAME),
    )
