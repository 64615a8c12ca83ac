from __future__ import annotations

import numpy as np
import pytest

from instahide.attacks.implementation_audits.label_leakage import audit_labels, coefficients_from_labels
from instahide.attacks.implementation_audits.planted import smooth_pictures
from instahide.attacks.implementation_audits.release import Release
from instahide.attacks.replica import Replica, make_replica
from instahide.encoder_config import EncoderConfig

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical


def replica(mode: str, *, cross: bool, k: int = 4, private: int = 2) -> Replica:
    """80 encodings by the real encoder, with the truth kept."""
    config = EncoderConfig(num_mixed=k, num_private=private, mode=mode)
    pool = smooth_pictures(100, seed=2) if cross else None
    return make_replica(smooth_pictures(80, seed=1), public=pool, config=config, releases=1)


def audit(made: Replica) -> tuple[dict[str, float], bool | None]:
    result = audit_labels(Release.of(made.encoded), true_private=made.truth.private_coefficients)
    return result.metrics, result.leaked


@pytest.mark.parametrize("cross", [True, False])
def test_the_published_law_shows_every_coefficient_of_rows_with_classes_apart(cross: bool) -> None:
    made = replica("compat", cross=cross)
    metrics, leaked = audit(made)
    assert leaked
    labels = made.truth.images.labels
    assert labels is not None
    classes = labels[made.truth.private_rows]
    apart = np.array([len(set(row)) == classes.shape[1] for row in classes.tolist()])
    assert metrics["rows_with_coefficients_read_exactly"] == pytest.approx(apart.mean())
    assert metrics["rows_showing_a_same_class_event"] == pytest.approx(1 - apart.mean())
    assert metrics["rows_showing_the_public_weight"] == (1.0 if cross else 0.0)


def test_the_default_with_a_public_pool_hides_coefficients_and_public_weight() -> None:
    metrics, leaked = audit(replica("hardened", cross=True))
    assert leaked is False
    assert metrics["rows_with_coefficients_read_exactly"] == 0.0
    assert metrics["rows_showing_the_public_weight"] == 0.0
    assert metrics["coefficient_resolution"] == 1 / 64
    assert metrics["rows_showing_all_classes"] > 0.5  # what it cannot hide: which classes were mixed


def test_without_public_images_even_the_grid_shows_the_coefficients_as_used() -> None:
    metrics, leaked = audit(replica("hardened", cross=False))
    assert leaked
    assert metrics["rows_with_coefficients_read_exactly"] > 0.2


def test_one_public_source_has_the_rest_of_the_weight() -> None:
    made = replica("compat", cross=True, k=3)
    read = coefficients_from_labels(Release.of(made.encoded))
    known = ~np.isnan(read).any(axis=1)
    np.testing.assert_allclose(read[known, 2], made.truth.coefficients[known, 2], atol=1e-6)


def test_withheld_labels_show_nothing() -> None:
    made = replica("compat", cross=True)
    release = Release(made.encoded.images.numpy(), None, made.encoded.config, "cross")
    assert audit_labels(release).leaked is False


def test_labels_that_are_noise_are_not_called_coefficients() -> None:
    made = replica("compat", cross=True)
    noise = np.random.default_rng(0).dirichlet(np.ones(10), size=80).astype(np.float32)
    release = Release(made.encoded.images.numpy(), noise, made.encoded.config, "cross")
    assert audit_labels(release).leaked is None
