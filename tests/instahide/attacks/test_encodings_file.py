from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from instahide.attacks import encodings_file
from instahide.attacks.encodings_file import check_encodings, check_labels, read_public_images, read_release
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import InstaHideError, IntegrityError, InvalidInputError
from instahide.images import ImageSet
from instahide.storage import save_encoded


def values(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, 3, 12, 12))


def soft_labels(count: int = 5) -> np.ndarray:
    return np.random.default_rng(1).dirichlet(np.ones(4), count) * 0.6


def test_arrays_of_either_layout_and_any_float_are_read(tmp_path: Path) -> None:
    for name, images in (("first", values()), ("last", np.moveaxis(values(), 1, 3).astype(np.float32))):
        np.savez(tmp_path / f"{name}.npz", encodings=images, labels=soft_labels())
        release = read_release(tmp_path / f"{name}.npz")
        assert release.image_shape == (3, 12, 12)
        assert np.allclose(release.images.numpy(), values(), atol=1e-6)
        assert release.labels is not None
        assert np.allclose(release.labels.numpy(), soft_labels(), atol=1e-6)
        assert release.config is None


def test_labels_may_lie_in_a_file_of_their_own(tmp_path: Path) -> None:
    np.save(tmp_path / "encryption.npy", np.moveaxis(values(), 1, 3))
    np.save(tmp_path / "label.npy", soft_labels())
    release = read_release(tmp_path / "encryption.npy", labels=tmp_path / "label.npy")
    assert release.labels is not None
    assert release.labels.shape == (5, 4)
    assert read_release(tmp_path / "encryption.npy").labels is None


def test_a_folder_of_ours_brings_its_law(tmp_path: Path) -> None:
    images = ImageSet(
        np.random.default_rng(0).integers(0, 256, (20, 12, 12, 1), dtype=np.uint8), np.arange(20) % 2
    )
    epoch = Encoder(EncoderConfig(num_mixed=4), private=images).encode_epoch()
    save_encoded(epoch, tmp_path / "encoded")
    release = read_release(tmp_path / "encoded")
    assert np.array_equal(release.images, epoch.images)
    assert release.config == epoch.config
    assert release.scheme == "inside"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"encodings": values()[0]}, "have shape"),
        ({"encodings": values()[:0]}, "have shape"),
        ({"encodings": (values() * 100).astype(np.int16)}, "not floating point"),
        ({"encodings": np.zeros((5, 2, 12, 12))}, "neither 1 nor 3 channels"),
        ({"encodings": np.where(values() > 0.99, np.nan, values())}, "holds NaN or infinity"),
        ({"encodings": values(), "labels": np.arange(5.0)}, "labels have shape"),
        ({"encodings": values(), "labels": soft_labels(4)}, "labels have shape"),
        ({"encodings": values(), "labels": soft_labels()[:, :1]}, "labels have shape"),
        ({"encodings": values(), "labels": -soft_labels()}, "label row 0 is no soft label"),
        ({"encodings": values(), "labels": 0 * soft_labels()}, "label row 0 is no soft label"),
        ({"pictures": values()}, "no array named encodings; it holds pictures"),
        ({"encodings": np.array([{}], dtype=object)}, "pickled objects"),
    ],
)
def test_what_is_no_release_is_refused_for_what_it_is(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(InstaHideError, match=message) as caught:
        read_release(tmp_path / "file.npz")
    assert caught.value.exit_code in (2, 4)
    assert caught.value.hint


def test_of_a_release_larger_than_memory_the_first_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encodings_file, "MAX_BYTES", 2 * 3 * 12 * 12 * 4 + 10_000)
    np.savez(tmp_path / "file.npz", encodings=values(9).astype(np.float32), labels=soft_labels(9))
    release = read_release(tmp_path / "file.npz")
    assert (len(release), release.num_left_out) == (7, 2)
    assert release.labels is not None
    assert len(release.labels) == 7
    assert np.array_equal(release.images.numpy(), values(9)[:7].astype(np.float32))


def test_too_few_and_absent_are_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "file.npz", encodings=values())
    with pytest.raises(InvalidInputError, match="holds 5 encodings, and this attack needs 6"):
        read_release(tmp_path / "file.npz", at_least=6)
    with pytest.raises(InvalidInputError, match="is not there"):
        read_release(tmp_path / "nowhere.npz")


def test_a_cut_file_is_a_damaged_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "file.npz", encodings=values())
    whole = (tmp_path / "file.npz").read_bytes()
    (tmp_path / "file.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError):
        read_release(tmp_path / "file.npz")


def test_public_images_take_the_encodings_shape(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "public.npz", x=pixels)
    assert read_public_images(tmp_path / "public.npz", (1, 8, 8)).image_shape == (1, 8, 8)


def test_checks_name_the_first_row_at_fault() -> None:
    broken = values()
    broken[3, 0, 0, 0] = np.inf
    with pytest.raises(InvalidInputError, match="encoding 3 of here"):
        check_encodings(broken, "here")
    labels = soft_labels()
    labels[2, 1] = np.nan
    with pytest.raises(InvalidInputError, match="label row 2"):
        check_labels(labels, 5)
