"""Client-level differential privacy: a trusted coordinator adds noise to the mean of clipped updates.

McMahan, Ramage, Talwar, Zhang, *Learning Differentially Private Recurrent Language Models*, ICLR 2018, with
fixed clipping and every registered site asked in every round:

    Δ_i ← Δ_i · min(1, C' / ‖Δ_i‖)                 C ``max-update-norm``, Δ_i a site's change of the weights
    mean = ( Σ_i Δ_i + N(0, (z·C)²·I) ) / m        z ``noise-multiplier``, m the sites that answered

The same as Flower's server-side fixed clipping (z·C/m is its ``compute_stdv``) but for four things: the mean
is not weighted by claimed images, for then one site moves it by more than C/m; arrays without axes are
clipped like the others, which Flower 1.41 leaves as they are; noise comes from the operating system's
entropy in whole numbers on a grid (:mod:`instahide.integer_noise`) and not from numpy's generator; and
C' is C less what rounding to that grid can add, z·C·√D / 2^14.
FedAdam's step and whatever else follows is post-processing.

**Guarantee**: (ε, δ) for one site's whole contribution, replaced by no change ("zero-out"), against whoever
gets the models of all rounds. Which sites took part, how many images they have and the figures they
measured are not covered. The coordinator sees the updates and is trusted. Each release is charged to the
ledger in the run directory before anybody sees it, so a resumed run pays again for a repeated round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from instahide.errors import InvalidInputError
from instahide.integer_noise import add_noise, grid_step
from instahide.randomness import Keystream, Randomness

from ..accounting import PrivacyEvent, epsilon_of
from ..config import RunConfig
from ..messages import Arrays
from ..privacy_ledger import LEDGER_NAME, PrivacyLedger
from .aggregation import Aggregator, Column, ServerState, in_fixed_order, to_float32
from .validation import Update

_MARGIN = 1e-9
"""Relative; covers float64 rounding of norms and sums."""


@dataclass(frozen=True, kw_only=True)
class ClientGuarantee:
    """What a run's releases guarantee for one site; epsilon is infinite beyond 30."""

    epsilon: float
    delta: float
    num_releases: int
    noise_multiplier: float
    clip_norm: float
    num_weights: int
    fewest_honest_sites: int = 0
    """Sites that share the noise, where the coordinator does not add it; 0 where it does."""


class AroundRule:
    """A rule that hands its updates on to ``inner`` and has no memory of its own."""

    inner: Aggregator

    @property
    def state(self) -> ServerState:
        """The inner rule's memory."""
        return self.inner.state

    @state.setter
    def state(self, value: ServerState) -> None:
        self.inner.state = value

    @property
    def left_out(self) -> list[str]:
        """Sites the last aggregate did not use."""
        return self.inner.left_out

    @left_out.setter
    def left_out(self, value: list[str]) -> None:
        self.inner.left_out = value


@dataclass
class NoisyMean(AroundRule):
    """The rule ``inner`` on one pseudo-update: the noisy mean of the sites' clipped changes.

    Raises:
        InvalidInputError: so many weights that rounding to the noise's grid would use up the clipping norm.
    """

    inner: Aggregator
    run_name: str
    clip_norm: float
    noise_multiplier: float
    num_weights: int
    ledger: PrivacyLedger
    stream: Keystream = field(default_factory=lambda: Randomness().stream("noise"))

    def __post_init__(self) -> None:
        if self.clip_to <= 0:
            raise InvalidInputError(
                f"{self.num_weights:,} weights are too many for a noise multiplier of "
                f"{self.noise_multiplier:g}: rounding to the noise's grid would use up the clipping norm",
                hint="use a smaller model or a smaller noise-multiplier",
            )

    @property
    def clip_to(self) -> float:
        """C': what updates are shortened to before rounding."""
        step = grid_step("gaussian", self.noise_multiplier * self.clip_norm)
        return (self.clip_norm - step * math.sqrt(self.num_weights)) * (1 - _MARGIN)

    def aggregate(self, server_round: int, current: Arrays, updates: Sequence[Update]) -> Arrays:
        """See :class:`Aggregator`; the release is on the ledger before this returns."""
        ordered = in_fixed_order(updates)
        total = np.zeros(self.num_weights)
        for update in ordered:
            total += clipped_change(update.arrays, current, self.clip_to)
        self.ledger.charge(self._event(server_round))
        noisy = add_noise(self.stream, total, "gaussian", self.noise_multiplier * self.clip_norm)
        arrays = _moved(current, noisy / len(ordered))
        pseudo = Update(node_id=0, site_name="noisy mean", arrays=arrays, num_examples=1, metrics={})
        return self.inner.aggregate(server_round, current, [pseudo])

    def guarantee(self, target_delta: float) -> ClientGuarantee:
        """What all releases of the run so far come to, those before a resume included."""
        events = self.ledger.events(run_name=self.run_name)
        return ClientGuarantee(
            epsilon=epsilon_of(events, target_delta),
            delta=target_delta,
            num_releases=len(events),
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            num_weights=self.num_weights,
        )

    def _event(self, server_round: int) -> PrivacyEvent:
        return PrivacyEvent(
            run_name=self.run_name,
            server_round=server_round,
            mechanism="client",
            noise_multiplier=self.noise_multiplier,
            sample_rate=1.0,
            num_steps=1,
            num_draws=self.num_weights,
        )


def with_client_privacy(inner: Aggregator, config: RunConfig, folder: Path, weights: Arrays) -> Aggregator:
    """``inner`` itself, or under noise where the run asks for client-level privacy.

    Raises:
        InvalidInputError: the noise does not fit the model's size.
        IntegrityError: the ledger in ``folder`` is damaged.
    """
    if config.differential_privacy != "client":
        return inner
    return NoisyMean(
        inner=inner,
        run_name=config.run_name,
        clip_norm=config.max_update_norm,
        noise_multiplier=config.noise_multiplier,
        num_weights=sum(array.size for array in weights.values()),
        ledger=PrivacyLedger(folder / LEDGER_NAME),
    )


def clipped_change(arrays: Arrays, current: Arrays, clip_to: float) -> Column:
    """(D,) float64: the change from ``current`` in its order of names, at most ``clip_to`` long."""
    change = np.concatenate(
        [np.subtract(arrays[name], array, dtype=np.float64).ravel() for name, array in current.items()]
    )
    norm = math.sqrt(float(change @ change))
    return change * (clip_to / norm) if norm > clip_to else change


def _moved(current: Arrays, change: Column) -> Arrays:
    result: Arrays = {}
    place = 0
    for name, array in current.items():
        part = change[place : place + array.size].reshape(array.shape)
        result[name] = to_float32(name, array + part)
        place += array.size
    return result
