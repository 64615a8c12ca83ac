from __future__ import annotations

import numpy as np
import pytest

from instahide.attacks.implementation_audits.coefficient_reuse import (
    audit_coefficients,
    longest_run,
    weights_of,
)
from instahide.attacks.implementation_audits.planted import Faults
from instahide.attacks.implementation_audits.planted_checks import sound_release, weak_release
from instahide.attacks.implementation_audits.release import Release
from instahide.encoder_config import EncoderConfig


@pytest.mark.parametrize("public", [True, False])
def test_a_batch_that_takes_old_coefficients_is_found_with_its_lag(public: bool) -> None:
    result = audit_coefficients(weak_release(Faults(repeated_coefficients=30), public=public))
    assert result.leaked
    assert "90 rows later" in result.verdict  # the last 30 of 120 are those of the first 30


def test_on_a_grid_a_run_of_equal_rows_is_found_though_single_ones_are_common() -> None:
    release = sound_release(images=120)
    assert release.labels is not None
    labels = release.labels.copy()
    labels[-40:] = labels[:40]
    again = Release(release.encodings, labels, release.config, release.scheme)
    result = audit_coefficients(again)
    assert result.leaked
    assert result.metrics["run_length_needed"] > 1


def test_one_coefficient_vector_for_all_is_found() -> None:
    release = sound_release()
    rows = np.zeros((120, 10), dtype=np.float32)
    rows[np.arange(120), np.arange(120) % 10] = 0.75
    rows[np.arange(120), (np.arange(120) + 1) % 10] = 0.25
    result = audit_coefficients(Release(release.encodings, rows, release.config, release.scheme))
    assert result.leaked


@pytest.mark.statistical
@pytest.mark.parametrize("public", [True, False])
def test_fresh_coefficients_raise_no_alarm(public: bool) -> None:
    # At most 0.001 a release by the choice of the window: six of them 0.006.
    for images in (60, 120, 200):
        assert audit_coefficients(sound_release(public=public, images=images)).leaked is False


def test_runs_are_counted_as_by_hand() -> None:
    weights = np.array([1, 2, 3, 4, 9, 1, 2, 3, 8, 7])
    assert longest_run(weights, 3) == (1, 5)
    assert longest_run(weights, 2) == (2, 5)
    assert longest_run(weights, 4) == (0, 0)
    assert longest_run(np.full(10, -1), 1) == (0, 0)


def test_weights_do_not_depend_on_the_classes() -> None:
    labels = np.array([[0.6, 0.4, 0.0], [0.0, 0.4, 0.6], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    first, second, third, alone = weights_of(labels)
    assert first == second != third
    assert alone == -1


def test_without_labels_it_cannot_be_told() -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (5, 1, 16, 16)).astype(np.float32)
    assert audit_coefficients(Release(noise, None, EncoderConfig(), "cross")).leaked is None
