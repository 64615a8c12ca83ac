"""Canaries in DP-SGD: is the epsilon of a private run contradicted?

Axes: m canaries, D weights, T steps.

The strongest input DP-SGD allows is not an image but a gradient (Nasr et al., IEEE S&P 2021, 2023): canary
j contributes ten times the clipping norm along coordinate j and nothing elsewhere, whenever it is
sampled. Each canary is in the run or not by its own fair coin, the training itself is the real one
(:func:`instahide.dp_training.train_with_dp`, real images, real sampling, clipping and noise), and the
attacker sees the noisy sum of every step. With y_t the released value at its coordinate, C the clipping norm
and s the noise's standard deviation, a canary's score is the log-likelihood ratio

    Σ_t log(1 − q + q·exp((C·y_t − C²/2) / s²))                                                     (1)

The coordinates carry independent noise and a canary touches its own only, so the m scores count both as m
independent runs of the mechanism against one canary (:func:`.epsilon_bounds.epsilon_from_runs`), where that
independence is taken from the code, and as one run with m canaries (Steinke et al. 2023), where it is not.
Gradients of the training images are small against the noise in any one coordinate and only blur the scores.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..dp_training import train_with_dp, training_epsilon
from ..errors import InvalidInputError
from ..images import ImageSet
from ..training_config import TrainingConfig
from .cost import Cost
from .dp_audit import AuditFinding, CanaryScores, Claim, audit_result, judge, null_check
from .view import AttackResult

_LOUDNESS = 10.0
"""A canary's gradient is this many clipping norms long: a clip that is missing shows."""


def claim_of_training(
    noise_multiplier: float, sample_rate: float, num_steps: int, *, target_delta: float = 1e-5
) -> Claim:
    """What :mod:`instahide.dp_training` says of so many steps."""

    def curve(delta: float) -> float:
        return training_epsilon(noise_multiplier, sample_rate, num_steps, delta, num_weights=1)

    words = (
        f"epsilon {curve(target_delta):.3g} at delta {target_delta:.1g} for {num_steps} steps at sample rate "
        f"{sample_rate:.3g} and noise multiplier {noise_multiplier:.3g} (add or remove one)"
    )
    return Claim(target_delta, curve, None, words)


class GradientCanaries:
    """An observer of a private run: plants m canaries, half of them by coin, and scores each by (1)."""

    def __init__(
        self,
        num_canaries: int,
        num_weights: int,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        sample_rate: float,
        seed: int,
    ) -> None:
        if not 40 <= num_canaries <= num_weights:
            raise InvalidInputError(
                f"{num_canaries} canaries in a model of {num_weights} weights",
                hint="each has a weight of its own; use 40 or more, and no more than there are weights",
            )
        rng = np.random.default_rng(seed)
        self._rng, self._num_weights = rng, num_weights
        self._coordinates = rng.choice(num_weights, size=num_canaries, replace=False)
        self._C, self._q = max_grad_norm, sample_rate
        self._variance = (noise_multiplier * max_grad_norm) ** 2
        self.coins = rng.random(num_canaries) < 0.5
        self.scores: NDArray[np.float64] = np.zeros(num_canaries)

    def extra_gradients(self) -> torch.Tensor | None:
        """(b, D) gradients of the canaries that are in and sampled in this step."""
        sampled = np.flatnonzero(self.coins & (self._rng.random(len(self.coins)) < self._q))
        rows = torch.zeros(len(sampled), self._num_weights)
        rows[torch.arange(len(sampled)), torch.from_numpy(self._coordinates[sampled])] = _LOUDNESS * self._C
        return rows

    def see(self, noisy_sum: torch.Tensor) -> None:
        """Add this step's log-likelihood ratio to every canary's score."""
        y = noisy_sum.numpy()[self._coordinates]
        exponent = (self._C * y - self._C**2 / 2) / self._variance
        out = np.log1p(-self._q) if self._q < 1 else -np.inf
        self.scores += np.logaddexp(out, np.log(self._q) + exponent)


def audit_training(
    model: nn.Module,
    data: ImageSet,
    config: TrainingConfig,
    *,
    noise_multiplier: float,
    max_grad_norm: float = 1.0,
    sample_rate: float | None = None,
    claim: Claim | None = None,
    num_canaries: int = 1000,
    one_run: bool = False,
    target_delta: float = 1e-5,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> AttackResult:
    """Audit a private training run with gradient canaries; ``model`` is trained by it, canaries included.

    Args:
        claim: what is claimed; by default what this package claims of the steps taken.
        one_run: count canaries as one run, without taking their noise for independent; a lower bound.
        seed: of coordinates and coins, the attacker's choices.
    """
    q = sample_rate if sample_rate is not None else min(1.0, config.batch_size / max(1, len(data)))
    with Cost() as cost:
        found, num_steps = run_with_canaries(
            model,
            data,
            config,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            sample_rate=q,
            num_canaries=num_canaries,
            one_run=one_run,
            seed=seed,
            progress=progress,
            should_stop=should_stop,
        )
        claim = claim or claim_of_training(noise_multiplier, q, num_steps, target_delta=target_delta)
        finding = judge(found, claim)
        null = null_check(claim, num_canaries, kind=found.kind, seed=seed)
    assumptions: tuple[str, ...] = (
        "the attacker sees the noisy sum of every step, as the proof allows",
        "the attacker inserts gradients, each along a weight of its own, ten times the clipping norm",
        "canaries go in by independent fair coins and are sampled like images",
    )
    if not one_run:
        assumptions += ("noise in different weights is independent, as the code draws it",)
    verdict = "contradicted" if null.contradicted else "not contradicted"
    return audit_result(
        "dp-audit: training" + (", one run" if one_run else ""),
        finding,
        claim,
        cost,
        assumptions=assumptions,
        settings={
            "noise_multiplier": noise_multiplier,
            "max_grad_norm": max_grad_norm,
            "sample_rate": q,
            "num_steps": num_steps,
            "canaries": num_canaries,
        },
        seed=seed,
        checks={"null": f"scores of pure noise: lower bound {null.epsilon:.3g}, claim {verdict}"},
    )


def power_check_training(
    make_model: Callable[[], nn.Module],
    data: ImageSet,
    config: TrainingConfig,
    *,
    noise_multiplier: float,
    sample_rate: float,
    num_canaries: int = 1000,
    target_delta: float = 1e-5,
    seed: int = 0,
) -> dict[str, AuditFinding]:
    """Planted faults, each with the claim of the faultless run; every finding must contradict it.

    ``"noise halved"``: half the noise that is claimed; ``"composition forgotten"``: one step is claimed.
    """

    def found(multiplier: float) -> tuple[CanaryScores, int]:
        return run_with_canaries(
            make_model(),
            data,
            config,
            noise_multiplier=multiplier,
            max_grad_norm=1.0,
            sample_rate=sample_rate,
            num_canaries=num_canaries,
            one_run=False,
            seed=seed,
        )

    halved, num_steps = found(noise_multiplier / 2)
    claim = claim_of_training(noise_multiplier, sample_rate, num_steps, target_delta=target_delta)
    one_step = claim_of_training(noise_multiplier, sample_rate, 1, target_delta=target_delta)
    return {
        "noise halved": judge(halved, claim),
        "composition forgotten": judge(found(noise_multiplier)[0], one_step),
    }


def run_with_canaries(
    model: nn.Module,
    data: ImageSet,
    config: TrainingConfig,
    *,
    noise_multiplier: float,
    max_grad_norm: float,
    sample_rate: float,
    num_canaries: int,
    one_run: bool,
    seed: int,
    progress: Callable[..., None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[CanaryScores, int]:
    """Scores of the canaries of one private run, and how many steps it took."""
    canaries = GradientCanaries(
        num_canaries,
        sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        sample_rate=sample_rate,
        seed=seed,
    )
    result = train_with_dp(
        model,
        data,
        config,
        target_delta=1e-5,
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        sample_rate=sample_rate,
        on_step=None if progress is None else lambda step, total: progress(step, total, "steps"),
        should_stop=should_stop,
        observer=canaries,
    )
    kind = "one-run" if one_run else "runs"
    return CanaryScores(canaries.scores, canaries.coins, kind), result.num_steps
