from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from instahide.attacks.public_sources import PublicSources, decoy_threshold, identify_public_sources
from instahide.attacks.public_sources_attack import cost_against_pool_size, identification_scores
from instahide.attacks.replica import Replica, make_replica
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

DATA = Path(os.environ.get("INSTAHIDE_DATA", Path(__file__).resolve().parents[3] / "../shared/data"))
CIFAR = DATA / "images/cifar10_5k.npz"
needs_cifar = pytest.mark.skipif(not CIFAR.is_file(), reason="the CIFAR-10 file is not here")


def photographs() -> ImageSet:
    with np.load(CIFAR) as file:
        images = ImageSet(file["x_train"], file["y_train"])
    return images.subset(np.random.default_rng(0).permutation(len(images)))


def replica(config: EncoderConfig, *, num_private: int = 40, pool: int = 500) -> Replica:
    images = photographs()
    private = images.subset(np.arange(num_private))
    public = ImageSet(images.images[num_private : num_private + pool])
    return make_replica(private, public=public, config=config, releases=1)


@needs_cifar
@pytest.mark.parametrize("mode", ["compat", "hardened"])
def test_one_release_gives_away_most_public_images_and_few_are_false(mode: str) -> None:
    made = replica(EncoderConfig(num_mixed=4, num_private=2, mode=mode))
    found = identify_public_sources(made.view(), false_discovery_rate=0.05)
    inside = found.rows[:, :, None] == made.truth.public_rows[:, None, :]
    # Measured: recall 0.85, precision 0.90 to 0.99 over instances. Chance finds 2 of 500. At a true precision
    # of 0.93, 70 named have a standard deviation of 0.031: 0.78 is almost five below.
    assert inside.any(axis=1).mean() > 0.6
    assert inside.any(axis=2).sum() > 0.78 * (found.rows >= 0).sum()
    right = inside.any(axis=1)
    coefficients = (found.coefficients[:, :, None] * inside).sum(axis=1)
    assert np.abs(coefficients - made.truth.coefficients[:, 2:])[right].mean() < 0.04


@needs_cifar
@pytest.mark.statistical
def test_nothing_is_identified_in_a_pool_that_was_not_used() -> None:
    made = replica(EncoderConfig(num_mixed=4, num_private=2, mode="compat"))
    unused = ImageSet(photographs().images[1000:1500])
    # Equation (1) with q = 0.01: any identification at all has probability at most 0.01.
    assert (identify_public_sources(made.view(), pool=unused).rows == -1).all()


def test_the_decoy_threshold_is_the_one_counted_by_hand() -> None:
    scores = np.array([9.0, 8.0, 7.0, 6.0, 5.0])
    decoys = np.array([False, False, True, False, False])
    # Down to 5: (1 + 1) / 4 = 0.5; down to 8: 1 / 2 = 0.5; down to 9: 1.
    assert decoy_threshold(scores, decoys, pool_to_decoys=1, rate=0.5) == 5.0
    assert decoy_threshold(scores, decoys, pool_to_decoys=2, rate=0.5) == 8.0
    assert decoy_threshold(scores, decoys, pool_to_decoys=1, rate=0.4) == float("inf")


@needs_cifar
def test_what_does_not_fit_is_refused() -> None:
    made = replica(EncoderConfig(num_mixed=4), num_private=4, pool=50)
    with pytest.raises(InvalidInputError, match="pool"):
        identify_public_sources(made.view(), pool=ImageSet(np.zeros((3, 8, 8), dtype=np.uint8)))
    with pytest.raises(InvalidInputError, match="signed"):
        identify_public_sources(made.view(), signed=torch.zeros(2, 3, 32, 32))
    with pytest.raises(InvalidInputError, match="false_discovery_rate"):
        identify_public_sources(made.view(), false_discovery_rate=1.0)


@needs_cifar
@pytest.mark.slow
def test_the_cost_grows_far_slower_with_the_pool_than_conjectured() -> None:
    made = replica(EncoderConfig(num_mixed=6, num_private=2, mode="compat"), num_private=20, pool=520)
    exponent, curves = cost_against_pool_size(made.view(), (60, 400))
    # Conjectured k/2 = 3; measured 0.2 to 0.5, and the work is linear at most.
    assert exponent < 2
    assert curves["conjectured"][1][1] / curves["conjectured"][0][1] == pytest.approx((400 / 60) ** 3)
    with pytest.raises(InvalidInputError, match="pool sizes"):
        cost_against_pool_size(made.view(), (60, 5000))


def test_scores_are_those_counted_by_hand() -> None:
    rows = np.array([[3, 5], [7, -1], [-1, -1]])
    nothing = np.zeros(rows.shape)
    found = PublicSources(rows, nothing, nothing, 5.0, 0.02, torch.zeros(3, 1, 2, 2), np.zeros(3), 0, 0)
    values, intervals = identification_scores(found, np.array([[5, 3], [7, 1], [2, 4]]))
    assert values == {"recall": 0.5, "precision": 1.0, "all_sources_named": pytest.approx(1 / 3)}
    assert intervals["recall"][0] <= 0.5 <= intervals["recall"][1]


@needs_cifar
def test_where_all_sources_are_in_the_pool_the_fit_proves_itself() -> None:
    """Somebody who already holds the whole data set reads the mixing off an inside release exactly."""
    images = photographs().subset(np.arange(60))
    config = EncoderConfig(num_mixed=2, mode="compat")
    made = make_replica(images, public=None, config=config, releases=1)
    found = identify_public_sources(made.view(ImageSet(images.images)), false_discovery_rate=0.05)
    exact = found.unexplained < 1e-5
    assert exact.mean() > 0.8
    assert (np.sort(found.rows[exact], axis=1) == np.sort(made.truth.private_rows[exact], axis=1)).all()
    assert np.allclose(found.coefficients[exact].sum(axis=1), 1, atol=1e-4)
