"""``instahide encode`` from a file to a folder, with true exit codes and honest words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from federation.commands import encode as module
from federation.commands.console import StoppedError
from federation.commands.encode import encode
from instahide.errors import InvalidInputError, RefusedError
from instahide.storage import load_encoded

app = typer.Typer()
app.command()(encode)
DATA = Path(os.environ.get("INSTAHIDE_DATA", Path(__file__).resolve().parents[3] / "../shared/data"))


@pytest.fixture(autouse=True)
def own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "state" / "ledger.sqlite3"
    monkeypatch.setenv("INSTAHIDE_LEDGER", str(path))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "scans.npz", x_train=pixels[:40], y_train=np.arange(40) % 2, x_test=pixels[40:],
             y_test=np.arange(20) % 2)  # fmt: skip
    return tmp_path / "scans.npz"


def run(*words: object) -> click.testing.Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)


def test_encoding_a_file_says_what_was_written_charged_and_is_worth(tmp_path: Path, data: Path) -> None:
    result = run(data, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "encoded 40 images x 1 epoch(s)" in result.stdout
    assert "1 own, 3 as partner" in result.stdout
    assert "InstaHide is broken" in result.stdout
    assert "instahide demo" in result.stdout
    assert len(load_encoded(tmp_path / "out")) == 40


def test_the_second_run_over_the_same_images_is_refused(tmp_path: Path, data: Path) -> None:
    assert run(data, "--out", tmp_path / "one").exit_code == 0
    moved = data.rename(tmp_path / "renamed.npz")
    again = run(moved, "--out", tmp_path / "two")
    assert isinstance(again.exception, RefusedError)
    assert again.exception.exit_code == 3
    assert not (tmp_path / "two").exists()
    assert run(moved, "--out", tmp_path / "two", "--max-releases", 2).exit_code == 0


def test_json_holds_the_same_and_nothing_else_is_on_stdout(
    tmp_path: Path, data: Path, own_ledger: Path
) -> None:
    body = json.loads(run(data, "--out", tmp_path / "out", "--format", "json").stdout)
    assert (body["num_images"], body["own_uses_charged"], body["partner_uses_charged"]) == (40, 1, 3)
    assert body["ledger"] == str(own_ledger)
    assert body["law"]["mode"] == "hardened"
    assert "InstaHide is broken" in body["worth"]


def test_a_public_pool_takes_the_private_images_size_and_colour(tmp_path: Path, data: Path) -> None:
    pool = np.random.default_rng(1).integers(0, 256, (50, 20, 20), dtype=np.uint8)
    np.savez(tmp_path / "pool.npz", x=pool)
    result = run(data, "--out", tmp_path / "out", "--public", tmp_path / "pool.npz", "--num-mixed", 6)
    assert result.exit_code == 0, result.exception
    loaded = load_encoded(tmp_path / "out")
    assert (loaded.scheme, loaded.config.num_mixed, loaded.config.num_private) == ("cross", 6, 2)
    assert loaded.image_shape == (3, 16, 16)


def test_every_option_reaches_the_law(tmp_path: Path, data: Path) -> None:
    result = run(
        data, "--out", tmp_path / "out", "--num-mixed", 3, "--mode", "compat",
        "--coefficient-law", "dirichlet", "--quantization-bits", 6, "--epochs", 2, "--split", "test",
        "--image-size", 12, "--channels", 1, "--shard-size", 7,
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    loaded = load_encoded(tmp_path / "out")
    assert loaded.image_shape == (1, 12, 12)
    assert len(loaded) == 40  # 2 epochs of the 20 test images
    assert loaded.config.mode == "compat"
    assert loaded.config.coefficient_law == "dirichlet"
    assert loaded.config.quantization_bits == 6
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 6


@pytest.mark.parametrize(
    "words",
    [("--mode", "dp"), ("--coefficient-law", "uniform"), ("--split", "all")],
    ids=" ".join,
)
def test_wrong_options_are_input_errors_and_nothing_is_charged(
    tmp_path: Path, data: Path, own_ledger: Path, words: tuple[str, str]
) -> None:
    result = run(data, "--out", tmp_path / "out", *words)
    assert isinstance(result.exception, InvalidInputError)
    assert not (tmp_path / "out").exists()
    assert not own_ledger.exists()


def test_a_wrong_format_is_a_usage_error(tmp_path: Path, data: Path) -> None:
    assert run(data, "--out", tmp_path / "out", "--format", "xml").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_ctrl_c_says_how_to_go_on_and_resume_does(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.progress_bar

    def interrupting(text: str) -> object:
        class Bar:
            def __enter__(self) -> object:
                def on_progress(done: int, total: int | None = None) -> None:
                    if done >= 16:
                        raise KeyboardInterrupt

                return on_progress

            def __exit__(self, *_: object) -> None:
                return None

        return Bar()

    monkeypatch.setattr(module, "progress_bar", interrupting)
    stopped = run(data, "--out", tmp_path / "out", "--shard-size", 8)
    assert isinstance(stopped.exception, StoppedError)
    assert (stopped.exception.exit_code, "--resume" in stopped.exception.hint) == (130, True)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(module, "progress_bar", real)
    resumed = run(data, "--out", tmp_path / "out", "--shard-size", 8, "--resume")
    assert resumed.exit_code == 0, resumed.exception
    assert "16 rows were already there" in resumed.stdout
    assert len(load_encoded(tmp_path / "out")) == 40


def test_ctrl_c_before_anything_is_charged_leaves_nothing(
    tmp_path: Path, data: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("instahide.encode_job.encode_to_folder", interrupt)
    stopped = run(data, "--out", tmp_path / "out")
    assert (stopped.exit_code, stopped.stderr) == (130, "")  # the words come from federation.cli
    assert not (tmp_path / "out").exists()


def test_an_encoded_folder_is_not_encoded_again(tmp_path: Path, data: Path) -> None:
    assert run(data, "--out", tmp_path / "out").exit_code == 0
    again = run(tmp_path / "out", "--out", tmp_path / "twice").exception
    assert isinstance(again, InvalidInputError)
    assert "holds encodings, not images" in again.message


def test_images_without_labels_are_refused_with_what_to_do(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((20, 8, 8), np.uint8))
    refused = run(tmp_path / "x.npz", "--out", tmp_path / "out").exception
    assert isinstance(refused, InvalidInputError)
    assert "y_train" in refused.hint


def test_copies_that_are_left_out_are_told(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=np.concatenate([pixels, pixels[:3]]), y=np.arange(23) % 2)
    result = run(tmp_path / "x.npz", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    assert "3 exact copies" in result.stdout


def test_help_teaches_with_an_example() -> None:
    text = run("--help").output
    assert "instahide encode scans/ --out encoded/" in text
    assert "Exit codes" in text


@pytest.mark.parametrize("name", ["medical/breastmnist.npz", "medical/bccd_cells_32.npz"])
def test_real_images_encode(tmp_path: Path, name: str) -> None:
    if not (DATA / name).exists():
        pytest.skip("the shared medical images are not on this machine")
    result = run(DATA / name, "--out", tmp_path / "out", "--format", "json")
    assert result.exit_code == 0, result.exception
    body = json.loads(result.stdout)
    assert len(load_encoded(tmp_path / "out")) == body["num_images"]


# --- mode dp -------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_law", ["gaussian", "laplace"])
def test_mode_dp_says_what_it_guarantees(tmp_path: Path, data: Path, noise_law: str) -> None:
    pytest.importorskip("dp_accounting")
    words = (
        "--mode",
        "dp",
        "--target-epsilon",
        5,
        "--noise-law",
        noise_law,
        "--epochs",
        2,
        "--max-releases",
        2,
    )
    written = run(data, "--out", tmp_path / "encoded", *words, "--format", "json")
    assert written.exit_code == 0, written.output
    answer = json.loads(written.stdout)
    assert 4.99 < answer["guarantee"]["epsilon"] <= 5
    assert (answer["guarantee"]["own_uses"], answer["guarantee"]["partner_uses"]) == (2, 6)
    assert load_encoded(tmp_path / "encoded").config.coefficient_law == "equal"


def test_mode_dp_releases_an_image_once(tmp_path: Path, data: Path) -> None:
    words = ("--mode", "dp", "--target-epsilon", 5)
    first = run(data, "--out", tmp_path / "one", *words)
    assert "epsilon 5 at delta 1e-05 for one image (replace-one)" in first.output
    assert isinstance(run(data, "--out", tmp_path / "two", *words).exception, RefusedError)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--mode", "dp"), "needs --target-epsilon"),
        (("--target-epsilon", 3), "no meaning in mode hardened"),
        (("--mode", "mixup", "--noise-law", "laplace"), "no meaning in mode mixup"),
        (("--mode", "dp", "--target-epsilon", 99), "target_epsilon"),
    ],
)
def test_an_epsilon_and_mode_dp_belong_together(
    tmp_path: Path, data: Path, words: tuple[object, ...], named: str
) -> None:
    refused = run(data, "--out", tmp_path / "encoded", *words)
    assert isinstance(refused.exception, InvalidInputError)
    assert named in refused.exception.message
    assert not (tmp_path / "encoded").exists()
