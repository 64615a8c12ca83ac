from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch

from instahide.attacks.recovery.pairing_evidence import Gain
from instahide.attacks.recovery.recover import Recovery, RecoveryView, recover_images
from instahide.attacks.recovery.recovery_result import recovery_result, verdict
from instahide.attacks.replica import Replica, make_replica
from instahide.attacks.view import AttackerView
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError

from .recovery_examples import CONFIG, blotches, small_network

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

n, T = 8, 40
PRIVATE, PUBLIC, SIMILAR = blotches(n, seed=1), blotches(400, seed=2), blotches(600, seed=3)
# Without a sign mask nothing has to be trained; the other steps are the same.
MIXUP = EncoderConfig(num_mixed=4, num_private=2, mode="mixup")


@lru_cache(maxsize=1)
def made() -> Replica:
    return make_replica(PRIVATE, public=PUBLIC, config=MIXUP, releases=T)


def view(tier: str, *, encodings: torch.Tensor | None = None) -> RecoveryView:
    release, truth = made().view(SIMILAR, show_pool=False), made().truth
    if encodings is not None:
        release = replace(release, encodings=encodings)
    return RecoveryView(release, n, tier, truth.private_rows, truth.private_coefficients)


@lru_cache(maxsize=4)
def recovered(tier: str) -> Recovery:
    return recover_images(view(tier), checks=tier == "label-only")


@pytest.mark.parametrize("tier", ["decode", "label-only", "no-labels"])
def test_each_tier_rebuilds_the_images_and_says_so(tier: str) -> None:
    result = recovery_result(
        view(tier), recovered(tier), truth=PRIVATE.images, truth_rows=made().truth.private_rows
    )
    assert result.leaked
    assert "can be rebuilt" in result.verdict
    assert result.metrics["mean_ssim"] > 0.6
    assert result.metrics["mean_ssim"] > result.baselines["mean_ssim"] + 0.2
    assert result.metrics["max_ssim"] > result.metrics["mean_ssim_of_both"]
    assert tier in result.name
    sheets = list(result.pictures.values())
    assert sheets[0].dtype == np.uint8
    assert len(sheets[0]) == 3 * n


def test_planted_images_are_found_and_a_null_is_not() -> None:
    found = recovered("label-only")
    assert found.canaries is not None
    assert found.null is not None
    assert found.canaries.exceeds(found.null)
    assert not found.null.exceeds(None)
    checks = recovery_result(view("label-only"), found).checks
    assert "are found" in checks["power"]
    assert "give nothing" in checks["null"]


@pytest.mark.parametrize("tier", ["label-only", "no-labels"])
@pytest.mark.parametrize("kind", ["normal", "uniform", "shuffled"])
def test_noise_gives_nothing(tier: str, kind: str) -> None:
    real = made().encoded.images
    generator = torch.Generator().manual_seed(1)
    if kind == "normal":
        noise = torch.randn(real.shape, generator=generator) * real.std()
    elif kind == "uniform":
        noise = torch.rand(real.shape, generator=generator) * 2 - 1
    else:
        noise = torch.stack(
            [x.flatten()[torch.randperm(x.numel(), generator=generator)].view_as(x) for x in real]
        )
    found = recover_images(view(tier, encodings=noise), checks=False)
    assert not found.leaked
    assert verdict(found).startswith("nothing recovered")


def test_encodings_of_public_images_only_give_nothing() -> None:
    """Each row mixes four public images, and its label names classes at random."""
    rows = np.random.default_rng(0).integers(0, len(SIMILAR), (n * T, 4))
    sources = torch.from_numpy(SIMILAR.images[rows]).float() / 127.5 - 1
    found = recover_images(view("label-only", encodings=sources.mean(1)), checks=False)
    assert not found.leaked


def test_an_attack_that_cannot_find_planted_images_says_so() -> None:
    weak = Gain(0.0, 1.0)
    found = replace(recovered("label-only"), leaked=None, canaries=weak, null=weak)
    assert verdict(found).startswith("undecided")
    assert recovery_result(view("label-only"), found).leaked is None


def test_the_attack_is_told_nothing_it_should_not_know() -> None:
    assert view("no-labels").labels is None
    assert view("label-only").labels is not None
    shuffled = RecoveryView(view("label-only").release, n, "label-only")
    first = recover_images(shuffled, checks=False)
    np.testing.assert_array_equal(first.private_rows, recovered("label-only").private_rows)


def test_views_that_cannot_be_attacked_are_refused() -> None:
    release = view("label-only").release
    with pytest.raises(InvalidInputError, match="tier is 'best'"):
        RecoveryView(release, n, "best")
    with pytest.raises(InvalidInputError, match="needs the pairing"):
        RecoveryView(release, n, "decode")
    with pytest.raises(InvalidInputError, match="needs labels"):
        RecoveryView(replace(release, labels=None), n, "label-only")
    with pytest.raises(InvalidInputError, match="private images for"):
        RecoveryView(release, n * T + 1, "label-only")
    inside = AttackerView(release.encodings, release.labels, MIXUP, "inside", release.public_images)
    with pytest.raises(InvalidInputError, match="two private images"):
        RecoveryView(inside, n, "label-only")


def with_pool(releases: int, *, common: bool) -> RecoveryView:
    """40 × T encodings under a known pool; without ``common`` images no private image is in two of them."""
    images = 40 if common else 110 * releases
    pool = blotches(300, seed=12)
    made = make_replica(
        blotches(images, seed=11), public=pool, config=CONFIG, releases=releases if common else 1
    )
    encodings, labels = made.encoded.images, made.encoded.labels
    if not common:
        taken: set[int] = set()
        rows = []
        for row, sources in enumerate(made.truth.private_rows.tolist()):
            if taken.isdisjoint(sources):
                taken.update(sources)
                rows.append(row)
        encodings, labels = encodings[rows[: 40 * releases]], labels[rows[: 40 * releases]]
    return RecoveryView(AttackerView(encodings, labels, CONFIG, "cross", SIMILAR, pool), 40)


@pytest.mark.slow
@pytest.mark.statistical
def test_with_the_pool_known_four_releases_leak_and_planted_images_show_that_they_could() -> None:
    """Ten of twelve instances are said to leak: all three tries fail in one run of 200."""
    found = recover_images(with_pool(4, common=True), network=small_network())
    assert found.leaked
    assert found.canaries is not None
    assert found.canaries.exceeds(found.null)


@pytest.mark.slow
@pytest.mark.statistical
def test_with_the_pool_known_encodings_without_a_common_image_are_said_to_leak_nothing() -> None:
    found = recover_images(with_pool(4, common=False), network=small_network())
    assert found.leaked is False
    assert verdict(found) == "nothing recovered"


@pytest.mark.slow
def test_a_pool_that_was_not_mixed_in_is_not_taken_out() -> None:
    view = with_pool(1, common=True)
    wrong = replace(view, release=replace(view.release, public_pool=blotches(300, seed=13)))
    found = recover_images(wrong, network=small_network(), checks=False)
    assert not found.pool_taken_out
    assert recover_images(view, network=small_network(), checks=False).pool_taken_out
