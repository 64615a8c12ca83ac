"""``instahide attack run recovery`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from federation import cli
from instahide.attacks.replica import make_replica, save_arrays
from instahide.encoder_config import EncoderConfig
from instahide.images import ImageSet
from instahide.storage import save_encoded

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

n, T = 8, 15


def run(*words: object) -> int:
    return cli.run([str(word) for word in words])


def blotches(count: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(count, 20, 20))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(1, 2)).mean(axis=(3, 4))
    return (128 + 260 * smooth).clip(0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release without a sign mask, so that nothing has to be trained; with truth and public images."""
    config = EncoderConfig(num_mixed=4, num_private=2, mode="mixup")
    private = ImageSet(blotches(n, 1), np.arange(n) % 2)
    made = make_replica(private, public=ImageSet(blotches(400, 2)), config=config, releases=T)
    save_arrays(made, tmp_path)
    save_encoded(made.encoded, tmp_path / "encoded")
    np.savez(tmp_path / "similar.npz", x=blotches(500, 3))
    return tmp_path


def words(folder: Path, *more: object, encoded: str = "encoded") -> tuple[object, ...]:
    given = ("--encoded", folder / encoded, "--public", folder / "similar.npz", "--num-private-images", n)
    return ("attack", "run", "recovery", *given, "--format", "json", *more)


def test_images_are_rebuilt_stored_and_scored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(*words(folder, "--no-checks", "--out", folder / "r", "--truth", folder / "truth.npz"))
    assert done == 0
    result = json.loads(capsys.readouterr().out)
    assert result["leaked"] is True
    assert result["metrics"]["mean_ssim"] > 0.6
    images = np.load(folder / "r/recovered.npz")["images"]
    assert images.shape == (n, 1, 16, 16)
    assert images.dtype == np.float32
    assert np.abs(images).max() <= 1
    assert (folder / "r/result.json").exists()


def test_a_known_pairing_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--tier", "decode", "--pairing", folder / "truth.npz")
    assert run(*words(folder, *more)) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["tier"] == "decode"


def test_noise_gives_nothing_and_no_exit_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (n * T, 16, 16, 1)).astype(np.float32)
    labels = np.load(folder / "encoded.npz")["labels"]
    np.savez(folder / "noise.npz", encodings=noise, labels=labels)
    # Foreign arrays do not say their law; a tenth of a second of training is no less blind in noise.
    more = ("--no-checks", "--fail-on-leak", "--training-seconds", 1)
    assert run(*words(folder, *more, encoded="noise.npz")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["leaked"] is False
    assert result["verdict"].startswith("nothing recovered")


def test_a_leak_is_an_exit_code_where_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words(folder, "--no-checks", "--fail-on-leak")) == 3
    assert "can be rebuilt" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words(folder, "--tier", "decode")) == 2
    assert "needs the pairing" in capsys.readouterr().err
    np.savez(folder / "short.npz", private_rows=np.zeros((3, 2), dtype=int), coefficients=np.ones((3, 2)))
    assert run(*words(folder, "--tier", "decode", "--pairing", folder / "short.npz")) == 2
    assert "for 120 encodings" in capsys.readouterr().err
    np.savez(folder / "bare.npz", encodings=np.zeros((20, 16, 16, 1), dtype=np.float32))
    assert run(*words(folder, encoded="bare.npz")) == 2
    assert "needs labels" in capsys.readouterr().err
