"""What `inspect_dataset` finds in data sets built to hold exactly that."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instahide.dataset_report import inspect_dataset
from instahide.errors import InvalidInputError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (6, 8, 9), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_counts_sizes_and_bytes(tmp_path):
    files = [
        save(tmp_path / "train/a/1.png", X[0]),
        save(tmp_path / "train/a/2.png", X[1]),
        save(tmp_path / "train/b/1.png", X[2]),
        save(tmp_path / "test/b/1.bmp", np.stack([X[3], X[4], X[5]], axis=-1)),
        save(tmp_path / "test/b/2.png", X[4][:, :5].astype(np.uint16) * 100),
    ]
    (tmp_path / "train/c").mkdir()
    report = inspect_dataset(tmp_path)
    train, test = report.splits
    assert (train.name, train.num_images, train.class_counts) == ("train", 3, {"a": 2, "b": 1, "c": 0})
    assert (test.name, test.num_images, test.class_counts) == ("test", 2, {"a": 0, "b": 2, "c": 0})
    assert (train.imbalance, test.imbalance) == (2.0, 1.0)
    assert report.sizes == {"9x8": 4, "5x8": 1}
    assert report.channels == {"1": 4, "3": 1}
    assert report.depths == {"uint8": 4, "uint16": 1}
    assert report.num_bytes == sum(file.stat().st_size for file in files)
    assert report.empty_classes == ("c",)
    assert not report.has_leaks
    assert len(report.notes) == 2  # sizes and colours differ


def test_the_same_picture_is_found_within_and_across_splits_whatever_its_format(tmp_path):
    save(tmp_path / "train/a/1.png", X[0])
    save(tmp_path / "train/a/2.bmp", X[0])
    save(tmp_path / "train/a/3.png", X[1])
    save(tmp_path / "test/a/1.png", np.stack([X[1]] * 3, axis=-1))  # grey saved as colour
    save(tmp_path / "test/a/2.png", X[2])
    report = inspect_dataset(tmp_path)
    assert report.duplicates_within == (("train/a/1.png", "train/a/2.bmp"),)
    assert report.duplicates_across == (("train/a/3.png", "test/a/1.png"),)
    assert report.label_conflicts == ()
    assert report.has_leaks


def test_one_pixel_apart_is_not_the_same_picture(tmp_path):
    other = X[0].copy()
    other[3, 3] ^= 1
    np.savez(tmp_path / "d.npz", x_train=X[:1], x_test=other[None])
    report = inspect_dataset(tmp_path / "d.npz")
    assert not report.has_leaks
    # The same bytes in another shape are another picture.
    np.savez(tmp_path / "d.npz", x_train=X[:1], x_test=X[:1].reshape(1, 9, 8))
    assert not inspect_dataset(tmp_path / "d.npz").has_leaks


def test_one_picture_with_two_labels_is_a_conflict(tmp_path):
    np.savez(tmp_path / "d.npz", x=X[[0, 1, 0, 1]], y=[0, 1, 1, 1])
    report = inspect_dataset(tmp_path / "d.npz")
    assert report.label_conflicts == (("all[0]", "all[2]"),)
    assert report.duplicates_within == (("all[0]", "all[2]"), ("all[1]", "all[3]"))
    assert not report.has_leaks


def test_subjects_in_two_splits_are_counted_and_never_named(tmp_path):
    for index in range(4):
        save(tmp_path / f"{index}.png", X[index])
    rows = ["0.png,a,SECRET-1,train", "1.png,a,SECRET-2,train", "2.png,a,SECRET-1,test", "3.png,b,,test"]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,label,subject_id,split", *rows]))
    report = inspect_dataset(tmp_path)
    assert report.subjects_in_two_splits == 1
    assert report.has_leaks
    assert [split.num_subjects for split in report.splits] == [2, 1]
    assert "SECRET" not in json.dumps(report.to_dict()) + repr(report)


def test_subjects_of_arrays_count_too(tmp_path):
    np.savez(
        tmp_path / "d.npz", x_train=X[:2], x_test=X[2:4], patient_ids_train=[7, 8], patient_ids_test=[9, 8]
    )
    assert inspect_dataset(tmp_path / "d.npz").subjects_in_two_splits == 1


def test_nearly_constant_pictures_are_named(tmp_path):
    flat = np.full((8, 9), 90, np.uint8)
    faint = flat.copy()
    faint[::2] += 1  # spread 0.5 levels
    seen = flat.copy()
    seen[::2] += 4  # spread 2 levels
    np.savez(tmp_path / "d.npz", x=np.stack([X[0], flat, faint, seen]))
    assert inspect_dataset(tmp_path / "d.npz").near_constant == ("all[1]", "all[2]")


def test_unreadable_files_have_reasons_and_do_not_stop_the_report(tmp_path):
    save(tmp_path / "a/1.png", X[0])
    (tmp_path / "a/2.png").write_bytes(b"not a picture")
    (tmp_path / "a/3.png").symlink_to(tmp_path / "a/1.png")
    report = inspect_dataset(tmp_path)
    assert [(file.name, file.reason) for file in report.unreadable] == [
        ("a/2.png", "not a picture in a supported format"),
        ("a/3.png", "symbolic link, not followed"),
    ]
    assert report.bad_fraction == pytest.approx(2 / 3)
    assert "one class only: nothing to tell apart" in report.notes


def test_the_report_is_plain_json(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=[0, 1, 0, 1, 0, 2])
    report = json.loads(json.dumps(inspect_dataset(tmp_path / "d.npz").to_dict()))
    assert report["num_images"] == 6
    assert report["has_leaks"] is False
    assert report["splits"][0]["imbalance"] == 3.0


def test_labels_that_do_not_fit_the_images_are_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=[0, 1])
    with pytest.raises(InvalidInputError, match="the all split has 2 labels for 6 images"):
        inspect_dataset(tmp_path / "d.npz")


def test_medmnist_breast_holds_one_picture_in_training_and_test_with_two_labels():
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    file = Path(os.environ.get("INSTAHIDE_DATA", beside)) / "medical" / "breastmnist.npz"
    if not file.is_file():
        pytest.skip("the real data sets are not on this machine (INSTAHIDE_DATA)")
    with np.load(file) as stored:  # the claim, checked without our reader
        np.testing.assert_array_equal(stored["train_images"][115], stored["test_images"][76])
        assert stored["train_labels"][115] != stored["test_labels"][76]
    report = inspect_dataset(file)
    assert report.duplicates_across == (("train[115]", "test[76]"),)
    assert report.label_conflicts == (("train[115]", "test[76]"),)
