"""Noise for whole sites: enough for its target, of the size it says, and around the clipped mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from instahide.attacks.frontier.client_level import ClientLevelPlan, CoordinatorNoise
from instahide.attacks.frontier.federated import train_federated
from instahide.errors import InvalidInputError
from instahide.privacy_curves import gaussian_epsilon

PLAN = ClientLevelPlan(
    num_sites=4, num_weights=10_000, num_rounds=9, clip_norm=0.5, target_epsilon=8.0, target_delta=1e-5
)


def test_the_noise_is_the_least_that_keeps_the_target_over_all_rounds() -> None:
    noise = CoordinatorNoise(PLAN)
    assert 7.9 < noise.epsilon <= 8
    # Nine Gaussian releases of sensitivity C under z·C are one with three times the shift 1/z.
    assert noise.epsilon == pytest.approx(gaussian_epsilon(1e-5, 3 / noise.noise_multiplier), rel=1e-4)
    with pytest.raises(InvalidInputError, match="no noise keeps"):
        CoordinatorNoise(replace(PLAN, num_weights=10**10))


@pytest.mark.statistical
def test_long_changes_are_clipped_and_the_mean_carries_the_noise_promised() -> None:
    noise = CoordinatorNoise(PLAN)
    direction = np.zeros(PLAN.num_weights)
    direction[0] = 1.0
    changes = np.outer([1000.0, 0.1, 0.1, 0.1], direction)
    off = noise.mean(changes) - (0.5 + 0.3) / 4 * direction
    # 10,000 draws: the standard deviation is known to 0.7 %, 5 % is seven of those; a tail of 1e-11. One
    # value is within seven deviations but for 3e-12.
    sd = noise.noise_multiplier * PLAN.clip_norm / 4
    assert off.std() == pytest.approx(sd, rel=0.05)
    assert abs(off[0]) < 7 * sd


def test_weights_move_by_the_mean_of_what_the_sites_send() -> None:
    model = nn.Linear(2, 1)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}

    def train_site(site: nn.Module, index: int) -> None:
        with torch.no_grad():
            for value in site.parameters():
                value += index + 1.0

    train_federated(
        model, 3, 2, train_site, leave=lambda change: {name: -value for name, value in change.items()}
    )
    for name, value in model.named_parameters():
        assert value.detach().numpy() == pytest.approx(start[name].numpy() - 2 * 2.0)
