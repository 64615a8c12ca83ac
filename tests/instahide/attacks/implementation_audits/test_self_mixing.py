from __future__ import annotations

import numpy as np
import pytest

from instahide.attacks.implementation_audits.planted import Faults, plant, smooth_pictures
from instahide.attacks.implementation_audits.planted_checks import sound_release
from instahide.attacks.implementation_audits.release import Release
from instahide.attacks.implementation_audits.self_mixing import audit_self_mixing
from instahide.encoder_config import EncoderConfig

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical


@pytest.mark.parametrize(("k", "double"), [(2, False), (3, False), (4, True)])
def test_exactly_the_encodings_of_fewer_images_are_found(k: int, double: bool) -> None:
    faults = Faults(mixes_with_itself=True, double_precision=double)
    config = EncoderConfig(num_mixed=k, mode="compat")
    planted = plant(smooth_pictures(30, seed=1), config, faults, epochs=8)
    result = audit_self_mixing(planted.release)
    sources = planted.truth.private_rows
    labels = planted.truth.images.labels
    assert labels is not None
    images = np.array([len(set(row)) for row in sources.tolist()])
    classes = np.array([len(set(row)) for row in labels[sources].tolist()])
    expected = np.flatnonzero((images < k) & (images == classes))  # each class is one image
    assert len(expected) > 0
    assert result.metrics["rows_with_fewer_images"] == len(expected)
    assert result.settings["rows"] == expected[:20].tolist()
    assert result.leaked


def test_an_image_alone_is_found_without_labels() -> None:
    config = EncoderConfig(num_mixed=2, mode="compat")
    planted = plant(smooth_pictures(40, seed=1), config, Faults(mixes_with_itself=True), epochs=10)
    release = Release(planted.release.encodings, None, config, "inside")
    alone = int((planted.truth.private_rows[:, 0] == planted.truth.private_rows[:, 1]).sum())
    assert audit_self_mixing(release).metrics["rows_with_fewer_images"] == alone > 0


def test_two_images_of_one_class_are_not_taken_for_one() -> None:
    config = EncoderConfig(num_mixed=2, mode="compat")
    release = plant(smooth_pictures(60, seed=1, classes=2), config, Faults(), epochs=3).release
    result = audit_self_mixing(release)
    assert result.metrics["rows_tested"] > 50
    assert result.leaked is False


def test_rounded_values_are_not_decided() -> None:
    assert audit_self_mixing(sound_release(num_mixed=2, public=False)).leaked is None


def test_with_public_sources_no_encoding_is_of_one_image() -> None:
    assert audit_self_mixing(sound_release()).leaked is False
