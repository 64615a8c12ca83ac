from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from instahide.attacks.recovery.sign_recovery import SignNetwork, anchor, sign_recovery, train_sign_network
from instahide.attacks.recovery.simulated_mixtures import MixtureSimulator
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.mixing import to_unit_range

from .recovery_examples import CONFIG, blotches, small_network


def fresh_mixtures(count: int) -> torch.Tensor:
    images = to_unit_range(blotches(500, seed=200).images)
    return MixtureSimulator(images, CONFIG, "cross", seed=1).mixtures(count)


@pytest.mark.statistical
def test_magnitudes_give_mixtures_up_to_one_sign() -> None:
    """Power: the mask is undone for mixtures the network has not seen."""
    mixtures = fresh_mixtures(100)
    recovered = sign_recovery(mixtures.abs(), small_network())
    agreement = cosine_similarity(recovered.mean.flatten(1), mixtures.flatten(1)).abs()
    # A guess of all plus scores 0.6 here, coin flips 0.06; the network 0.9. Its median over 100 rows has
    # sd below 0.02, so 0.8 is five of them away.
    assert float(agreement.median()) > 0.8
    assert 0.5 < float(recovered.confidence.mean()) <= 1


def test_the_sign_mask_is_of_no_consequence() -> None:
    mixtures = fresh_mixtures(5)
    masked = mixtures * torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], mixtures.shape)).float()
    first, second = (sign_recovery(each, small_network()).mean for each in (mixtures, masked))
    torch.testing.assert_close(first, second)
    assert bool((first.abs() <= mixtures.abs() + 1e-6).all())


@pytest.mark.statistical
def test_a_guide_settles_the_free_sign() -> None:
    mixtures = fresh_mixtures(60)
    error = 0.1
    noise = error * torch.from_numpy(np.random.default_rng(1).normal(size=mixtures.shape)).float()
    for turn in (1.0, -1.0):
        guided = sign_recovery(
            mixtures.abs(), small_network(), guide=turn * (mixtures + noise), guide_error=error
        )
        agreement = cosine_similarity(guided.mean.flatten(1), turn * mixtures.flatten(1))
        # |z| above 0.3 leaves no doubt at this error (3 sd), and such values hold nearly all of |z|².
        assert float(agreement.mean()) > 0.9


def test_the_anchor_is_the_brightest_window() -> None:
    size = torch.zeros(1, 1, 16, 16)
    size[0, 0, 6:11, 3:8] = 1.0
    window = anchor(size)
    assert int(window.sum()) == 25
    torch.testing.assert_close(window, size)


@pytest.mark.parametrize("shape", [(1, 1, 13, 9), (2, 1, 8, 8)])
def test_any_size_of_image_is_taken(shape: tuple[int, ...]) -> None:
    assert sign_recovery(torch.rand(shape), SignNetwork(1)).mean.shape == shape


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    train_sign_network(blotches(50, seed=3), EncoderConfig(), cpu_seconds=0.01)
    assert torch.equal(before, torch.random.get_rng_state())


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="channels"):
        sign_recovery(torch.rand(1, 3, 8, 8), SignNetwork(1))
