"""``instahide attack run gram`` from files to files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from federation.commands.attack.gram import gram
from instahide.attacks.replica import make_replica, save_arrays
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical


def pictures(count: int, *, seed: int) -> ImageSet:
    """Pictures with detail at every scale: noise whose spectrum falls like that of photographs."""
    rng = np.random.default_rng(seed)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32)))
    spectrum = np.fft.fft2(rng.normal(size=(count, 32, 32))) / (radius + 1 / 32)
    values = np.fft.ifft2(spectrum).real
    values *= 60 / values.std(axis=(1, 2), keepdims=True)
    return ImageSet((values + 128).clip(0, 255).astype(np.uint8), np.arange(count) % 2)


def run(*words: object) -> Result:
    app = typer.Typer()
    app.command()(gram)
    return CliRunner().invoke(app, [str(word) for word in words])


def test_images_are_put_together_from_a_file_and_scored_against_the_truth(tmp_path: Path) -> None:
    config = EncoderConfig(num_mixed=4, num_private=2, mode="hardened")
    public = ImageSet(pictures(300, seed=1).images)
    save_arrays(make_replica(pictures(8, seed=2), public=public, config=config, releases=8), tmp_path)
    done = run(
        *("--encoded", tmp_path / "encoded.npz", "--public", tmp_path / "public.npz"),
        *("--truth", tmp_path / "truth.npz", "--num-private-images", 8, "--num-mixed", 4),
        *("--no-checks", "--out", tmp_path / "found", "--format", "json"),
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["leaked"] is True
    assert result["metrics"]["mean_ssim"] > 0.5 > result["baselines"]["mean_ssim"]
    with np.load(tmp_path / "found/recovered.npz") as file:
        assert file["images"].shape[1:] == (1, 32, 32)
        assert np.abs(file["images"]).max() <= 1
        assert file["pairs"].shape == file["coefficients"].shape == (64, 2)


def test_the_theorem_runs_without_any_file() -> None:
    words = ("--gaussian", "--num-private-images", 8, "--features", 3072, "--trials", 1, "--format", "json")
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["curve_axes"][0] == "encodings over n·ln n"


def test_a_missing_option_is_named() -> None:
    done = run("--num-private-images", 5)
    assert isinstance(done.exception, InvalidInputError)
    with pytest.raises(InvalidInputError, match="--encoded"):
        raise done.exception
