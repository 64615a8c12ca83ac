from __future__ import annotations

import numpy as np
import pytest

from instahide.attacks.implementation_audits.mask_reuse import audit_masks, neighbour_products, reused_masks
from instahide.attacks.implementation_audits.planted import Faults, plant, smooth_pictures
from instahide.attacks.implementation_audits.planted_checks import sound_release, weak_release
from instahide.attacks.implementation_audits.release import Release
from instahide.attacks.implementation_audits.statistics import fair_signs_threshold
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

LAW = EncoderConfig(num_mixed=4, mode="compat")


def test_pairs_with_one_mask_are_found_and_named() -> None:
    planted = plant(smooth_pictures(100, seed=1, channels=3), LAW, Faults(mask_pool=60))
    result = audit_masks(planted.release)
    assert result.leaked
    masks = planted.mask_bits
    assert all((masks[i] == masks[j]).all() for i, j in result.settings["pairs"])
    same = sum((masks[i] == masks[j]).all() for i in range(100) for j in range(i))
    assert result.metrics["pairs_with_one_mask"] > 0.7 * same


def test_statistics_are_those_of_each_pair_taken_alone() -> None:
    signs = np.sign(np.random.default_rng(0).normal(size=(6, 2, 8, 8))).astype(np.float32)
    signs[0, 0, 0, :3] = 0
    expected = 0.0
    for i in range(6):
        for j in range(i):
            for part in [signs.reshape(6, -1), *neighbour_products(signs)]:
                products = part[i] * part[j]
                expected = max(expected, abs(products.sum()) / np.sqrt((products != 0).sum()))
    found = reused_masks(signs, threshold=100.0)
    assert found.largest == pytest.approx(expected, rel=1e-5)
    assert found.number == 0


def test_one_mask_for_all_channels_is_found() -> None:
    result = audit_masks(weak_release(Faults(one_mask_for_channels=True), channels=3))
    assert result.leaked
    assert "channels share a mask" in result.verdict


def test_a_missing_mask_is_found() -> None:
    config = EncoderConfig(num_mixed=4, mode="mixup")
    release = Release.of(Encoder(config, private=smooth_pictures(50, seed=1)).encode_epoch())
    result = audit_masks(release)
    assert result.leaked
    assert "missing" in result.verdict


@pytest.mark.parametrize("public", [True, False])
def test_the_default_mode_has_fresh_masks(public: bool) -> None:
    assert audit_masks(sound_release(public=public)).leaked is False


@pytest.mark.statistical
def test_no_alarm_on_noise() -> None:
    # Hoeffding's bound makes the chance of an alarm at most 0.001 a release; three of them 0.003, and in
    # truth far less, as the bound is loose.
    rng = np.random.default_rng(5)
    for _ in range(3):
        noise = rng.uniform(-1, 1, (150, 3, 8, 8)).astype(np.float32)
        assert audit_masks(Release(noise, None, LAW, "inside")).leaked is False


def test_the_threshold_is_hoeffdings() -> None:
    z = fair_signs_threshold(1000, false_alarm=1e-3)
    assert 2 * 1000 * np.exp(-(z**2) / 2) == pytest.approx(1e-3)
