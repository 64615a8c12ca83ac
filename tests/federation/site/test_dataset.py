"""The registered data: what is read, what is held out, and what happens when it changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from federation.site.dataset import CARD_NAME, SiteData, hold_out, load_site_data, register
from federation.site.worker_config import load_worker_config
from instahide.errors import IntegrityError, InvalidInputError, RefusedError
from instahide.exposure import ExposureLedger
from instahide.images import ImageSet

from .site_examples import digit_images, request, site_data, write_site


def pictures(images: ImageSet) -> set[bytes]:
    return {image.tobytes() for image in images.images}


def test_a_file_with_its_own_test_split_is_used_as_it_is(tmp_path: Path) -> None:
    data = load_site_data(load_worker_config(write_site(tmp_path)))
    assert (len(data.training), len(data.test), data.public) == (120, 60, None)
    assert data.class_names == tuple("0123456789")


def test_without_test_images_a_part_is_held_out(tmp_path: Path) -> None:
    path = write_site(tmp_path, worker="test-fraction = 0.25\n")
    images = digit_images(0, 400)
    np.savez(tmp_path / "data.npz", images=images.images[:, 0], labels=images.labels)
    data = load_site_data(load_worker_config(path))
    assert len(data.training) + len(data.test) == 400
    assert 50 < len(data.test) < 150
    assert not pictures(data.training) & pictures(data.test)


def test_a_public_pool_and_separate_test_images_are_read(tmp_path: Path) -> None:
    path = write_site(tmp_path, worker='test-data = "test.npz"\npublic-data = "public.npy"\n')
    test = digit_images(500, 530)
    np.savez(tmp_path / "test.npz", images=test.images[:, 0], labels=test.labels)
    np.save(tmp_path / "public.npy", digit_images(600, 700).images[:, 0])
    data = load_site_data(load_worker_config(path))
    assert len(data.test) == 30
    assert data.public is not None
    assert len(data.public) == 100


def test_a_site_that_lacks_a_class_counts_by_the_federations_list(tmp_path: Path) -> None:
    path = write_site(tmp_path, worker='class-names = ["9", "8", "7", "6", "5", "4", "3", "2", "1", "0"]\n')
    data = load_site_data(load_worker_config(path))
    plain = digit_images(0, 120)
    assert plain.labels is not None
    np.testing.assert_array_equal(data.training.labels, 9 - plain.labels)


def test_holding_out_is_the_same_every_time_and_moves_nothing_when_images_are_added() -> None:
    _, few = hold_out(digit_images(0, 300), 0.2)
    training, more = hold_out(digit_images(0, 600), 0.2)
    assert pictures(few) <= pictures(more)
    assert not pictures(more) & pictures(training)


def test_a_subject_is_never_on_both_sides() -> None:
    images = digit_images(0, 300)
    subjects = tuple(f"subject-{number // 5}" for number in range(300))
    training, test = hold_out(ImageSet(images.images, images.labels, images.class_names, subjects), 0.3)
    assert training.subject_ids is not None
    assert test.subject_ids is not None
    assert test.subject_ids
    assert not set(training.subject_ids) & set(test.subject_ids)


def test_sets_of_different_shape_are_refused() -> None:
    larger = ImageSet(np.zeros((4, 9, 9), np.uint8) + np.arange(9, dtype=np.uint8))
    with pytest.raises(InvalidInputError, match="public images"):
        SiteData(digit_images(0, 50), digit_images(50, 60), larger)


def test_nothing_to_test_on_is_said_at_the_start() -> None:
    with pytest.raises(InvalidInputError, match="0 test images"):
        SiteData(digit_images(0, 50), digit_images(50, 50))


@pytest.mark.parametrize(
    "settings", [{"class_names": ["a", "b"]}, {"class_names": list("9876543210")}, {"image_shape": [3, 8, 8]}]
)
def test_a_run_about_other_images_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(RefusedError):
        site_data().check_fits(request(**settings))
    site_data().check_fits(request())


def test_the_first_start_registers_and_a_second_with_the_same_images_agrees(tmp_path: Path) -> None:
    ledger = ExposureLedger(tmp_path / "ledger.sqlite3")
    register(site_data(), ledger, tmp_path)
    register(site_data(), ledger, tmp_path)
    card = json.loads((tmp_path / CARD_NAME).read_text())
    assert card["num-training-images"] == 120
    assert sum(card["training-images-per-class"]) == 120
    assert (tmp_path / CARD_NAME).stat().st_mode & 0o777 == 0o600


def test_changed_images_are_refused_until_the_change_is_meant(tmp_path: Path) -> None:
    ledger = ExposureLedger(tmp_path / "ledger.sqlite3")
    register(site_data(), ledger, tmp_path)
    with pytest.raises(RefusedError, match="training-commitment"):
        register(site_data(119), ledger, tmp_path)
    register(site_data(119), ledger, tmp_path, accept_changes=True)
    register(site_data(119), ledger, tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"format-version": 9}'])
def test_a_damaged_card_is_not_taken_for_no_card(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD_NAME).write_text(text)
    with pytest.raises(IntegrityError):
        register(site_data(), ExposureLedger(tmp_path / "ledger.sqlite3"), tmp_path)
