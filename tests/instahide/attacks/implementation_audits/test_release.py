from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from instahide.attacks.implementation_audits import release as release_module
from instahide.attacks.implementation_audits.planted import smooth_pictures
from instahide.attacks.implementation_audits.release import Release
from instahide.encoded_dataset import EncodedDataset
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.storage import save_encoded

LAW = EncoderConfig(num_mixed=2, mode="compat")


def test_values_keep_the_type_they_were_stored_in(tmp_path: Path) -> None:
    encodings = np.random.default_rng(0).uniform(-1, 1, (5, 8, 8, 3))
    np.savez(tmp_path / "e.npz", encodings=encodings, labels=np.full((5, 2), 0.5))
    release = Release.read(tmp_path / "e.npz", config=LAW)
    assert release.encodings.dtype == np.float64
    assert release.encodings.shape == (5, 3, 8, 8)
    np.testing.assert_array_equal(release.encodings[:, 1], encodings[..., 1])


def test_labels_may_lie_in_another_file_or_be_withheld(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", encodings=np.zeros((5, 1, 8, 8), np.float32))
    np.save(tmp_path / "l.npy", np.full((5, 2), 0.5))
    assert Release.read(tmp_path / "e.npz", config=LAW).labels is None
    with_labels = Release.read(tmp_path / "e.npz", labels=tmp_path / "l.npy", config=LAW)
    assert with_labels.labels is not None


def test_a_folder_says_its_own_law(tmp_path: Path) -> None:
    encoder = Encoder(EncoderConfig(num_mixed=3), private=smooth_pictures(20, seed=1))
    epoch = encoder.encode_epoch()
    save_encoded(epoch, tmp_path / "e")
    release = Release.read(tmp_path / "e")
    assert release.config == encoder.config
    assert release.scheme == "inside"
    np.testing.assert_array_equal(release.encodings, epoch.images.numpy())


@pytest.mark.parametrize(("held", "rows", "epochs"), [(45, 40, 2), (20, 20, 1), (7, 7, 1), (1000, 60, 3)])
def test_of_a_large_folder_as_many_whole_epochs_are_read_as_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, rows: int, epochs: int
) -> None:
    encoder = Encoder(EncoderConfig(num_mixed=3), private=smooth_pictures(20, seed=1))
    parts = [encoder.encode_epoch() for _ in range(3)]
    together = EncodedDataset(
        torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]),
        parts[0].class_names, parts[0].config, parts[0].scheme,
    )  # fmt: skip
    save_encoded(together, tmp_path / "e", epochs=3)
    monkeypatch.setattr(release_module, "MAX_BYTES", held * 4 * 16 * 16)
    release = Release.read(tmp_path / "e")
    assert (len(release), release.epochs) == (rows, epochs)


@pytest.mark.parametrize(
    ("encodings", "labels", "message"),
    [
        (np.zeros((5, 8, 8), np.float32), None, "shape"),
        (np.zeros((5, 1, 8, 8), np.int64), None, "int64"),
        (np.full((5, 1, 8, 8), np.nan, np.float32), None, "NaN"),
        (np.zeros((0, 1, 8, 8), np.float32), None, "shape"),
        (np.zeros((5, 1, 8, 8), np.float32), np.zeros((4, 2), np.float32), "labels"),
        (np.zeros((5, 1, 8, 8), np.float32), np.full((5, 2), -1.0), "negative"),
    ],
)
def test_what_is_no_release_is_refused(
    encodings: np.ndarray, labels: np.ndarray | None, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Release(encodings, labels, LAW, "inside")


def test_rows_must_be_whole_epochs() -> None:
    with pytest.raises(InvalidInputError, match="epochs"):
        Release(np.zeros((5, 1, 8, 8), np.float32), None, LAW, "inside", epochs=2)


def test_a_file_without_a_law_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", encodings=np.zeros((5, 1, 8, 8), np.float32))
    with pytest.raises(InvalidInputError, match="how it was encoded"):
        Release.read(tmp_path / "e.npz")
