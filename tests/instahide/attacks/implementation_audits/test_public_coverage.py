from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from instahide.attacks.implementation_audits.planted import Faults, plant, smooth_pictures
from instahide.attacks.implementation_audits.planted_checks import sound_release
from instahide.attacks.implementation_audits.public_coverage import audit_public_coverage, usage_scores
from instahide.attacks.implementation_audits.release import Release
from instahide.encoder_config import EncoderConfig

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

LAW = EncoderConfig(num_mixed=6, num_private=2, mode="compat")


def release(first: int | None) -> Release:
    private, pool = smooth_pictures(100, seed=1), smooth_pictures(1000, seed=2)
    return plant(private, LAW, Faults(first_public_only=first), public=pool, epochs=4).release


@pytest.mark.parametrize("first", [31, 100])
def test_a_beginning_of_the_pool_that_serves_alone_is_found(first: int) -> None:
    result = audit_public_coverage(release(first))
    assert result.leaked
    assert "its first" in result.verdict


def test_images_in_use_score_higher() -> None:
    weak = release(50)
    assert weak.public_pool is not None
    scores = usage_scores(weak, weak.public_pool)
    assert scores[:50].mean() > scores[50:].mean() + 0.5 * scores.std()


@pytest.mark.statistical
def test_a_pool_in_even_use_raises_no_alarm() -> None:
    # 0.001 a release: four of them 0.004.
    for _ in range(2):
        assert audit_public_coverage(release(None)).leaked is False
        assert audit_public_coverage(sound_release(epochs=4)).leaked is False


@pytest.mark.statistical
def test_noise_uses_no_part_of_the_pool() -> None:
    weak = release(31)
    noise = np.random.default_rng(0).uniform(-1, 1, weak.encodings.shape).astype(np.float32)
    assert audit_public_coverage(replace(weak, encodings=noise)).leaked is False  # false alarm: 0.001


def test_without_the_pool_it_cannot_be_told() -> None:
    assert audit_public_coverage(replace(release(31), public_pool=None)).leaked is None


def test_inside_there_is_no_pool() -> None:
    assert audit_public_coverage(sound_release(public=False)).leaked is False
