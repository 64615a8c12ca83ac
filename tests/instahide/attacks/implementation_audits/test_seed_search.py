from __future__ import annotations

import numpy as np
import pytest

from instahide.attacks.implementation_audits.mask_recovery import background_bits
from instahide.attacks.implementation_audits.planted import Faults, plant, smooth_pictures
from instahide.attacks.implementation_audits.planted_checks import sound_release
from instahide.attacks.implementation_audits.release import Release
from instahide.attacks.implementation_audits.seed_laws import SEED_LAWS, SeedLaw
from instahide.attacks.implementation_audits.seed_search import (
    LabelChecksum,
    audit_seeds,
    search_mask_seeds,
    search_seeds,
)
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

LAW = EncoderConfig(num_mixed=4, mode="compat")
NAMES = [law.name for law in SEED_LAWS]


def weak(law: SeedLaw, seed: int, *, cross: bool = False, config: EncoderConfig = LAW) -> Release:
    private = smooth_pictures(120, seed=1)
    public: ImageSet | None = smooth_pictures(100, seed=2) if cross else None
    return plant(private, config, Faults(coefficients_from=(law, seed)), public=public).release


@pytest.mark.parametrize("law", [law for law in SEED_LAWS if law.normals], ids=lambda law: law.name)
@pytest.mark.parametrize("k", [2, 4, 6])
def test_many_seeds_at_once_draw_what_the_generator_draws(law: SeedLaw, k: int) -> None:
    seeds = np.array([0, 99, 2**32 - 1], dtype=np.uint32)
    assert law.normals is not None
    drawn = law.normals(seeds, 3 * k)
    for column, seed in zip(drawn.T, seeds, strict=True):
        drawable = ~np.isnan(column)  # numpy's rejection may run out of tries: then the seed is replayed
        assert drawable.mean() > 0.5
        expected = law.replay(int(seed), 3, k).ravel()
        np.testing.assert_allclose(column[drawable], expected[drawable], atol=1e-6)


@pytest.mark.parametrize("law", SEED_LAWS, ids=NAMES)
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("in_order", [False, True])
def test_a_small_seed_is_found_from_the_labels_alone(law: SeedLaw, cross: bool, in_order: bool) -> None:
    checksum = LabelChecksum.of(weak(law, 1500, cross=cross), in_order=in_order)
    found, _ = search_seeds(law, checksum, range(1200, 1800))
    assert found == 1500


def test_labels_on_a_grid_give_a_seed_away_in_order() -> None:
    """A coarse label protects nothing if the generator is seeded: five bits a row, sixty rows."""
    hardened = EncoderConfig(num_mixed=4, mode="hardened")
    law = SEED_LAWS[0]
    release = weak(law, 300, config=EncoderConfig(num_mixed=4, mode="compat"))
    assert release.labels is not None
    rounded = np.rint(release.labels * 64) / 64
    on_grid = Release(release.encodings, rounded, hardened, "inside")
    assert search_seeds(law, LabelChecksum.of(on_grid), range(600))[0] == 300


def test_a_release_without_a_seed_has_none() -> None:
    result = audit_seeds(sound_release(), seed_bits=9)
    assert result.leaked is False
    assert result.metrics["seeds_found"] == 0


@pytest.mark.statistical
@pytest.mark.parametrize("in_order", [False, True])
def test_no_seed_is_found_where_coefficients_are_fresh(in_order: bool) -> None:
    # A confirmation has chance 1e-12 by construction; 3·2^12 seeds make 1e-8.
    release = plant(smooth_pictures(120, seed=1), LAW, Faults()).release
    checksum = LabelChecksum.of(release, in_order=in_order)
    for law in SEED_LAWS[:3]:
        assert search_seeds(law, checksum, range(1 << 12)) == (None, 1 << 12)


def test_a_seed_of_the_masks_is_found_from_a_black_border() -> None:
    release = plant(smooth_pictures(5, seed=1, border=5), LAW, Faults(mask_seed=30_000)).release
    assert search_mask_seeds(background_bits(release), range(1 << 16))[0] == 30_000


def test_a_search_stops_in_order_at_its_time_limit() -> None:
    law = SEED_LAWS[0]
    checksum = LabelChecksum.of(weak(law, 2**31))
    found, tried = search_seeds(law, checksum, range(1 << 26), max_seconds=0.0)
    assert found is None
    assert tried == 1 << 14


def test_labels_of_one_source_cannot_be_searched() -> None:
    release = sound_release(num_mixed=1, public=False)
    with pytest.raises(InvalidInputError, match="two coefficients"):
        LabelChecksum.of(release)
