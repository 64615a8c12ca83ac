from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from federation.commands.console import StoppedError
from federation.commands.train import train
from instahide.checkpoints import load_model
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet
from instahide.storage import save_encoded
from instahide.training import EpochRecord
from instahide.training_log import TrainingLog, read_csv

QUICK = ("--epochs", "2", "--batch-size", "16", "--num-threads", "1", "--device", "cpu", "--deterministic")


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    waves = 90 * np.sin(np.arange(12)[None, :] + rng.uniform(0, 6, (count, 1)))
    images = np.where(labels[:, None, None] == 1, waves[:, :, None], waves[:, None, :])
    noisy = images + rng.normal(128, 15, (count, 12, 12))
    return noisy.clip(0, 255).astype(np.uint8), labels


@pytest.fixture
def with_splits(tmp_path: Path) -> Path:
    (x_train, y_train), (x_test, y_test) = stripes(96, 0), stripes(40, 1)
    np.savez(tmp_path / "data.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return tmp_path / "data.npz"


def run(*words: object) -> Result:
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, [str(word) for word in words])


def test_plain_images_with_their_own_test_split(with_splits: Path, tmp_path: Path) -> None:
    result = run(with_splits, "--out", tmp_path / "run", *QUICK)
    assert result.exit_code == 0, result.output
    assert "plain query" in result.output
    assert "not measured" in result.output
    assert load_model(tmp_path / "run/model.safetensors").spec.absolute_input is False
    assert [record.epoch for record in read_csv(tmp_path / "run/metrics.csv")] == [0, 1]
    assert not (tmp_path / "run/checkpoint.safetensors").exists()


def test_fresh_encodings_show_all_three_modes(with_splits: Path, tmp_path: Path) -> None:
    result = run(
        with_splits, "--encode", "--num-mixed", 2, "--out", tmp_path / "run", "--format", "json", *QUICK
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["evaluation"].keys() == {"plain", "encoded_once", "encoded_average"}
    assert report["evaluation"]["encoded_average"]["num_views"] == 10
    assert report["model"]["absolute_input"] is True
    saved = json.loads((tmp_path / "run/metrics.json").read_text())
    assert saved["evaluation"] == report["evaluation"]


def test_an_encoded_folder_is_recognised(with_splits: Path, tmp_path: Path) -> None:
    private = ImageSet(*stripes(64, 0))
    save_encoded(Encoder(EncoderConfig(num_mixed=2), private=private).encode_epoch(), tmp_path / "encoded")
    result = run(tmp_path / "encoded", "--test", with_splits, "--out", tmp_path / "run", *QUICK)
    assert result.exit_code == 0, result.output
    assert "64 images (encodings)" in result.output
    assert "one encoded view" in result.output


def test_a_folder_with_a_run_is_not_overwritten(with_splits: Path, tmp_path: Path) -> None:
    assert run(with_splits, "--out", tmp_path / "run", *QUICK).exit_code == 0
    again = run(with_splits, "--out", tmp_path / "run", *QUICK)
    assert "already holds a run" in str(again.exception)


def test_interrupt_keeps_a_checkpoint_and_resume_ends_as_if_nothing_happened(
    with_splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = ("--epochs", "4", *QUICK[2:])
    handler = signal.getsignal(signal.SIGINT)
    write = TrainingLog.record

    def write_and_press_ctrl_c(log: TrainingLog, record: EpochRecord) -> None:
        write(log, record)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingLog, "record", write_and_press_ctrl_c)
        stopped = run(with_splits, "--out", tmp_path / "stopped", *long)
    assert isinstance(stopped.exception, StoppedError), stopped.output
    assert (stopped.exception.exit_code, "--resume" in stopped.exception.hint) == (130, True)
    assert signal.getsignal(signal.SIGINT) is handler
    assert (tmp_path / "stopped/checkpoint.safetensors").is_file()
    assert run(with_splits, "--out", tmp_path / "stopped", "--resume", *long).exit_code == 0
    assert run(with_splits, "--out", tmp_path / "whole", *long).exit_code == 0
    resumed, whole = (load_model(tmp_path / name / "model.safetensors") for name in ("stopped", "whole"))
    for name, value in whole.state_dict().items():
        assert (resumed.state_dict()[name] == value).all()
    assert [r.epoch for r in read_csv(tmp_path / "stopped/metrics.csv")] == list(range(4))


def test_there_must_be_something_to_resume(with_splits: Path, tmp_path: Path) -> None:
    result = run(with_splits, "--out", tmp_path / "run", "--resume", *QUICK)
    assert "holds no interrupted run" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_wrong_options_are_named(with_splits: Path, tmp_path: Path) -> None:
    assert "vgg" in str(run(with_splits, "--out", tmp_path / "run", "--model", "vgg").exception)
    assert "learning_rate" in str(run(with_splits, "--out", tmp_path / "r", "--learning-rate", -1).exception)


def test_options_without_a_meaning_are_refused(with_splits: Path, tmp_path: Path) -> None:
    for words in [("--num-mixed", 3), ("--mode", "compat"), ("--public", with_splits)]:
        refused = run(with_splits, "--out", tmp_path / "run", *words, *QUICK).exception
        assert isinstance(refused, InvalidInputError)
        assert words[0] in refused.message
        assert "--encode" in refused.hint
    assert not (tmp_path / "run").exists()


def test_one_image_in_an_encoding_needs_no_second_option(with_splits: Path, tmp_path: Path) -> None:
    result = run(with_splits, "--out", tmp_path / "run", "--encode", "--num-mixed", 1, *QUICK)
    assert result.exit_code == 0, result.exception


def test_test_images_take_the_size_of_the_training_images(with_splits: Path, tmp_path: Path) -> None:
    result = run(with_splits, "--out", tmp_path / "run", "--image-size", 8, "--channels", 3, *QUICK)
    assert result.exit_code == 0, result.exception
    assert load_model(tmp_path / "run/model.safetensors").spec.image_shape == (3, 8, 8)


def test_a_number_of_views_below_one_is_refused_before_training(with_splits: Path, tmp_path: Path) -> None:
    assert run(with_splits, "--out", tmp_path / "run", "--num-views", 0, *QUICK).exit_code == 2
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_cannot_be_made_is_wrong_input(with_splits: Path, tmp_path: Path) -> None:
    assert isinstance(run(with_splits, "--out", with_splits, *QUICK).exception, InvalidInputError)
    (tmp_path / "file").write_bytes(b"")
    refused = run(with_splits, "--out", tmp_path / "file/run", *QUICK).exception
    assert isinstance(refused, InvalidInputError)
    assert "Not a directory" in refused.message


def test_images_without_labels_are_refused_with_what_to_do(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=stripes(20, 0)[0])
    refused = run(tmp_path / "x.npz", "--out", tmp_path / "run", *QUICK).exception
    assert isinstance(refused, InvalidInputError)
    assert "y_train" in refused.hint


def test_an_equivalent_schedule_leaves_the_model_of_the_schedule_with_weight_decay(
    with_splits: Path, tmp_path: Path
) -> None:
    schedule = ("--lr-schedule", "exponential-equivalent", "--weight-decay", "0.02")
    whole = ("--batch-size", "96", *QUICK[:2], *QUICK[4:-1])  # one batch: the order of images is nothing
    ours = run(with_splits, "--out", tmp_path / "ours", *whole, *schedule, "--equivalent-to", "cosine")
    assert ours.exit_code == 0, ours.output
    theirs = run(with_splits, "--out", tmp_path / "theirs", *whole, "--weight-decay", "0.02")
    assert theirs.exit_code == 0, theirs.output
    mine, other = (load_model(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    for name, value in other.state_dict().items():
        assert (mine.state_dict()[name] - value).abs().max() < 1e-4, name
    refused = run(with_splits, "--out", tmp_path / "mlp", "--model", "mlp", *QUICK, *schedule)
    assert isinstance(refused.exception, InvalidInputError)
    assert "may be rescaled" in str(refused.exception)
    assert not (tmp_path / "mlp/model.safetensors").exists()
