"""What both ends of a run with secure aggregation derive from its settings, and must derive alike.

    settings, length of the model's weights  →  roster (who, threshold, hash of the settings)
                                                quantisation plan (bits, bounds, channels)

Nothing here is sent: coordinator and sites compute it, and the roster's hash in the first message
shows whether they agree. The settings are those of the plan that a hospital approved, so a
coordinator cannot change a name, a key or the threshold afterwards.

The weights travel as one vector: all arrays, by name, each in C order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives import serialization
from numpy.typing import NDArray

from instahide.errors import InvalidInputError

from .config import TrainingSettings
from .identity import load_public_identity
from .messages import INFERENCE_MODES, Arrays
from .plan import Plan
from .secure_aggregation import AggregationParameters, MeanChannel, QuantisationPlan, Roster
from .secure_aggregation.distributed_noise import DistributedNoise, reserve_noise
from .secure_aggregation.parameters import default_threshold

EQUAL_WEIGHT = "weight"
LARGEST_LOSS = 1000.0
LONGEST_SECONDS = 604_800.0


@dataclass(frozen=True)
class HiddenSum:
    """Roster and quantisation plan of one run; ``noise`` that the sites share, for client-level privacy."""

    roster: Roster
    plan: QuantisationPlan
    noise: DistributedNoise | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures that are summed under the mask."""
        counts = (name for name in self.plan.counts if name != EQUAL_WEIGHT)
        return (*counts, *(mean.name for mean in self.plan.means))


def hidden_sum(settings: TrainingSettings, vector_length: int) -> HiddenSum:
    """Roster and plan of a run whose model has ``vector_length`` weights that travel.

    Raises:
        InvalidInputError: no roster, a wrong entry in it, or a sum that could overflow.
    """
    identities = dict(_entry(text) for text in settings.roster)
    if len(identities) != len(settings.roster):
        raise InvalidInputError("roster names a site twice", hint="one entry for each site")
    num_sites = len(identities)
    plan = QuantisationPlan(
        vector_length=vector_length,
        num_sites=max(1, num_sites),
        coordinate_bound=settings.clipping_range,
        norm_bound=settings.max_update_norm,
        max_examples=settings.max_site_examples,
        ring_bits=settings.ring_bits,
        counts=_counts(settings),
        means=_means(settings),
    )
    parameters = aggregation_parameters(settings, num_sites, vector_length, plan.num_channels)
    noise = None
    if settings.differential_privacy == "client":
        honest = max(1, parameters.fewest_honest_sites(parameters.max_colluding_sites))
        noise = DistributedNoise(noise_multiplier=settings.noise_multiplier, fewest_honest_sites=honest)
        plan = reserve_noise(plan, noise)
    told = Plan.of(settings, bundle_sha256="").sha256
    digest = hashlib.sha256(bytes.fromhex(told) + plan.digest()).digest()
    roster = Roster(
        run_name=settings.run_name, parameters=parameters, identities=identities, settings_sha256=digest
    )
    return HiddenSum(roster, plan, noise)


def aggregation_parameters(
    settings: TrainingSettings, num_sites: int, vector_length: int, num_channels: int
) -> AggregationParameters:
    """Threshold and smallest sum of a run over ``num_sites`` sites."""
    threshold = settings.reconstruction_threshold or default_threshold(num_sites)
    return AggregationParameters.for_sites(
        num_sites,
        vector_length=vector_length,
        num_channels=num_channels,
        ring_bits=settings.ring_bits,
        threshold=threshold,
        minimum_sites=max(threshold, settings.minimum_sites),
        confirm_survivors=settings.confirm_survivors,
    )


def roster_entry(name: str, identity_line: str) -> str:
    """How a site stands in the setting ``roster``: its name and its public identity key."""
    return f"{name} {identity_line}"


def to_vector(arrays: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """(d,) all weights, by name."""
    return np.concatenate([np.asarray(arrays[name], np.float32).ravel() for name in sorted(arrays)])


def moved_by(arrays: Arrays, change: NDArray[np.float64]) -> Arrays:
    """``arrays`` with a change (d,) added, as float32; the inverse of :func:`to_vector` on differences."""
    moved, start = {}, 0
    for name in sorted(arrays):
        size = arrays[name].size
        part = change[start : start + size].reshape(arrays[name].shape)
        moved[name] = np.asarray(arrays[name] + part, dtype=np.float32)
        start += size
    return {name: moved[name] for name in arrays}


def _counts(settings: TrainingSettings) -> tuple[str, ...]:
    """The first is the weight; with client-level privacy all sites weigh the same, whatever their size."""
    counts = ("num-examples", "evaluate-num-examples") if settings.evaluate else ("num-examples",)
    return (EQUAL_WEIGHT, *counts) if settings.differential_privacy == "client" else counts


def _means(settings: TrainingSettings) -> tuple[MeanChannel, ...]:
    """Every figure a site would report in the clear; losses on training images are not private under DP."""
    private = settings.differential_privacy == "example"
    means = [MeanChannel(name=f"{name}-seconds", largest=LONGEST_SECONDS) for name in ("train", "worker")]
    if not private:
        means.append(MeanChannel(name="train-loss", weight="num-examples", largest=LARGEST_LOSS))
    if settings.evaluate:
        for mode in INFERENCE_MODES[:1] if private else INFERENCE_MODES:
            weight = "evaluate-num-examples"
            means.append(MeanChannel(name=f"evaluate-accuracy-{mode}", weight=weight))
            means.append(MeanChannel(name=f"evaluate-loss-{mode}", weight=weight, largest=LARGEST_LOSS))
    return tuple(means)


def _entry(text: str) -> tuple[str, bytes]:
    name, _, line = text.partition(" ")
    key = load_public_identity(line)
    return name, key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
