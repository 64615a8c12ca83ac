from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from instahide.attacks.implementation_audits.fixed_pairs import audit_fixed_pairs, supports_of
from instahide.attacks.implementation_audits.planted import Faults
from instahide.attacks.implementation_audits.planted_checks import sound_release, weak_release
from instahide.attacks.implementation_audits.release import Release


@pytest.mark.parametrize("public", [True, False])
def test_the_same_partners_in_two_epochs_are_found(public: bool) -> None:
    result = audit_fixed_pairs(weak_release(Faults(same_partners=True), epochs=2, public=public))
    assert result.leaked
    assert result.metrics["same_place_share"] == 1.0


def test_they_are_found_in_shuffled_files_too_if_there_are_many_epochs() -> None:
    release = weak_release(Faults(same_partners=True), epochs=40, public=True, images=60)
    order = np.random.default_rng(0).permutation(len(release))
    assert release.labels is not None
    shuffled = Release(
        release.encodings[order], release.labels[order], release.config, "cross", 40, in_data_order=False
    )
    result = audit_fixed_pairs(shuffled)
    assert result.leaked
    assert result.metrics["clumping_statistic"] > 6


@pytest.mark.statistical
@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize("epochs", [2, 5, 20])
def test_fresh_partners_raise_no_alarm(public: bool, epochs: int) -> None:
    # Six standard deviations of two statistics near normal: below 1e-6 each, six releases 1e-5.
    result = audit_fixed_pairs(sound_release(public=public, epochs=epochs, images=60))
    assert result.leaked is False


def test_one_epoch_has_no_pair_twice() -> None:
    assert audit_fixed_pairs(sound_release()).leaked is False


def test_labels_of_one_class_cannot_tell() -> None:
    release = sound_release(epochs=2)
    assert release.labels is not None
    one = np.zeros_like(release.labels)
    one[:, 0] = 1
    assert audit_fixed_pairs(replace(release, labels=one)).leaked is None


def test_a_support_is_the_set_of_classes() -> None:
    first, second, third = supports_of(np.array([[0.2, 0.8, 0.0], [0.7, 0.3, 0.0], [0.7, 0.0, 0.3]]))
    assert first == second != third
