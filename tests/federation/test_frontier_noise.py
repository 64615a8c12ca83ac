"""Noise that sites share, in the comparison of defences: the protocol's own, around the clipped mean."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from federation.frontier_noise import NoiseOfSites
from instahide.attacks.frontier.client_level import ClientLevelPlan, CoordinatorNoise
from instahide.privacy_curves import gaussian_epsilon

PLAN = ClientLevelPlan(
    num_sites=12, num_weights=5000, num_rounds=9, clip_norm=0.5, target_epsilon=8.0, target_delta=1e-5
)


def test_the_target_is_kept_with_more_noise_than_an_exact_accountant_needs() -> None:
    shared = NoiseOfSites(PLAN)
    assert 7.9 < shared.epsilon <= 8
    # Concentrated privacy is a bound: the exact figure of as much continuous noise is smaller, not by far.
    exact = gaussian_epsilon(1e-5, 3 / shared.noise_multiplier)
    assert 6.5 < exact < shared.epsilon
    assert shared.noise_multiplier > CoordinatorNoise(PLAN).noise_multiplier


@pytest.mark.statistical
def test_the_mean_carries_a_share_of_every_site() -> None:
    shared = NoiseOfSites(PLAN)
    changes = np.zeros((12, 5000))
    changes[:, 0] = [1000.0, *[0.1] * 11]
    off = shared.mean(changes)
    off[0] -= (0.5 + 1.1) / 12
    sd = shared.share * 0.5 * math.sqrt(12) / 12
    # 5,000 draws: the standard deviation is known to 1 %, 7 % is seven of those; one value within seven.
    assert off.std() == pytest.approx(sd, rel=0.07)
    assert abs(off[0]) < 7 * sd
    # What is counted on is the noise of the honest ones alone: 9 of 12 in a sum, 5 of them colluding.
    assert shared.share * math.sqrt(9 - 5) == pytest.approx(shared.noise_multiplier, rel=1e-3)


def test_it_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(NoiseOfSites)) is NoiseOfSites
