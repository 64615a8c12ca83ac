from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from instahide.attacks.replica import make_replica, save_arrays
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet


def pictures(count: int, seed: int) -> ImageSet:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count) % 3)


@pytest.mark.parametrize("has_pool", [True, False], ids=["cross", "inside"])
def test_the_truth_is_what_went_into_the_encodings(has_pool: bool) -> None:
    private, public = pictures(20, 0), pictures(50, 1)
    config = EncoderConfig(num_mixed=4, mode="compat")
    replica = make_replica(private, public=public if has_pool else None, config=config, releases=3)
    truth = replica.truth
    own, pool = (images.images.astype(np.float64) / 127.5 - 1 for images in (private, public))
    mixed = np.einsum("nk,nkchw->nchw", truth.private_coefficients, own[truth.private_rows])
    if has_pool:
        mixed += np.einsum("nk,nkchw->nchw", truth.coefficients[:, 2:], pool[truth.public_rows])
    assert np.abs(np.abs(mixed) - replica.encoded.images.abs().numpy()).max() < 1e-6
    assert np.bincount(truth.private_rows[:, 0]).tolist() == [3] * 20


def test_rows_are_in_an_order_that_tells_nothing() -> None:
    replica = make_replica(pictures(30, 0), public=pictures(50, 1), config=EncoderConfig(), releases=4)
    own = replica.truth.private_rows[:, 0]
    assert not np.array_equal(own, np.tile(np.arange(30), 4))
    assert sorted(own.tolist()) == sorted(np.tile(np.arange(30), 4).tolist())


def test_two_replicas_of_the_same_images_differ() -> None:
    first, second = (
        make_replica(pictures(20, 0), public=pictures(50, 1), config=EncoderConfig(), releases=1)
        for _ in range(2)
    )
    assert not np.array_equal(first.encoded.images, second.encoded.images)


def test_the_view_holds_nothing_of_the_truth() -> None:
    replica = make_replica(pictures(20, 0), public=pictures(50, 1), config=EncoderConfig(), releases=1)
    view = replica.view(show_labels=False, show_pool=False)
    assert view.labels is None
    assert view.public_pool is None
    assert not any("truth" in name or "row" in name for name in vars(view))


def test_arrays_on_disk_follow_the_contract_of_the_attacks(tmp_path: Path) -> None:
    replica = make_replica(pictures(20, 0), public=pictures(50, 1), config=EncoderConfig(), releases=2)
    save_arrays(replica, tmp_path / "here")
    with np.load(tmp_path / "here/encoded.npz") as file:
        assert file["encodings"].shape == (40, 3, 12, 12)
        assert file["labels"].shape == (40, 3)
    with np.load(tmp_path / "here/public.npz") as file:
        assert file["x"].dtype == np.uint8


def test_augmented_releases_hold_shifted_or_mirrored_images() -> None:
    """At k = 1 an encoding is one image but for its signs: about as many of them mirrored as not."""
    private = pictures(40, 0)
    config = EncoderConfig(num_mixed=1, num_private=1, mode="compat")
    replica = make_replica(private, public=None, config=config, releases=5, augment=True)
    values = np.abs(private.images[replica.truth.private_rows[:, 0]].astype(np.float32) / 127.5 - 1)
    seen = replica.encoded.images.abs().numpy()
    centre = (slice(None), slice(None), slice(2, 10), slice(2, 10))
    shifts = [
        np.abs(np.roll(turned, (dy, dx), axis=(2, 3)) - seen)[centre].max(axis=(1, 2, 3))
        for turned in (values, values[..., ::-1])
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    best = np.argmin(shifts, axis=0)
    assert np.min(shifts, axis=0).max() < 1e-5
    # 200 fair coins: 100 ± 7.1; six standard deviations, chance 2e-9.
    assert 57 < (best >= 9).sum() < 143
    assert len(set(best.tolist())) > 12


def test_no_release_is_no_replica() -> None:
    with pytest.raises(InvalidInputError, match="releases is 0"):
        make_replica(pictures(20, 0), public=None, config=EncoderConfig(), releases=0)
    inside = make_replica(pictures(20, 0), public=None, config=EncoderConfig(), releases=1)
    with pytest.raises(InvalidInputError, match="no public pool"):
        inside.view()
