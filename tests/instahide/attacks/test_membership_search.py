"""Membership with the pool known: candidates and pool are searched together."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from instahide.attacks.membership import known_image_membership
from instahide.attacks.membership_search import _shared_among_equals, found_first, searched_scores
from instahide.attacks.replica import make_replica
from instahide.encoder_config import EncoderConfig
from instahide.images import ImageSet

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

DATA = Path(os.environ.get("INSTAHIDE_DATA", Path(__file__).resolve().parents[3] / "../shared/data"))
needs_photographs = pytest.mark.skipif(
    not (DATA / "images/cifar10_5k.npz").is_file(), reason="the CIFAR-10 file is not here"
)


def photographs() -> ImageSet:
    with np.load(DATA / "images/cifar10_5k.npz") as file:
        return ImageSet(file["x_train"], file["y_train"])


def test_found_candidates_come_first_and_the_others_keep_their_order() -> None:
    likelihood = np.array([0.3, 7.0, -2.0, 1.0])
    combined = found_first(np.array([0.0, 0.0, 40.0, 60.0]), likelihood)
    assert list(np.argsort(-combined)) == [3, 2, 1, 0]


def test_equal_images_share_what_one_of_them_was_found_with() -> None:
    images = np.array([1, 2, 1, 3], dtype=np.uint8).reshape(4, 1, 1, 1)
    assert list(_shared_among_equals(images, np.array([0.0, 5.0, 9.0, 0.0]))) == [9.0, 5.0, 9.0, 0.0]


@needs_photographs
def test_one_release_names_its_members_and_no_stranger() -> None:
    """Measured: all of 30 members, no stranger; the likelihood alone has an AUC of about 0.95."""
    images = photographs()
    order = np.random.default_rng(0).permutation(len(images))
    private, pool = images.subset(order[:30]), ImageSet(images.images[order[400:1400]])
    config = EncoderConfig(num_mixed=4, num_private=2)
    view = make_replica(private, public=pool, config=config, releases=1).view(show_labels=False)
    scores = searched_scores(view, images.subset(order[:300]))
    assert (scores[:30] > 0).mean() >= 0.8
    assert (scores[30:] > 0).sum() <= 2


@needs_photographs
@pytest.mark.slow
def test_the_result_says_who_was_named_and_what_likelihood_alone_reaches() -> None:
    images = photographs()
    order = np.random.default_rng(1).permutation(len(images))
    private, pool = images.subset(order[:100]), ImageSet(images.images[order[1100:]])
    config = EncoderConfig(num_mixed=6, num_private=2)
    view = make_replica(private, public=pool, config=config, releases=1).view()
    result = known_image_membership(view, images.subset(order[:1100]), np.arange(1100) < 100, uses=2)
    assert result.leaked
    assert result.metrics["found_members"] > 0.9
    assert result.metrics["found_others"] < 0.005
    assert 0.9 < result.metrics["auc_likelihood"] < result.metrics["auc"]
    assert result.baselines["auc"] < 0.7
    assert result.checks["power"].startswith("passed")
    assert result.checks["null"].startswith("passed")
