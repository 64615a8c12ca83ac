from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from federation.cli import app
from instahide.attacks.replica import make_replica, save_arrays
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical


def pictures(count: int, seed: int) -> ImageSet:
    """Dark smooth colour pictures of 16×16 in four classes."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, 3, 20, 20))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(2, 3)).mean(axis=(4, 5))
    return ImageSet((70 + 200 * smooth).clip(0, 255).astype(np.uint8), np.arange(count) % 4)


@pytest.mark.slow
def test_a_user_runs_it_and_keeps_the_networks(tmp_path: Path) -> None:
    law = EncoderConfig(num_mixed=4, num_private=2, mode="compat")
    save_arrays(make_replica(pictures(16, 1), public=pictures(400, 2), config=law, releases=20), tmp_path)
    call = ["attack", "run", "published-2020", "--encoded", str(tmp_path / "encoded.npz")]
    call += ["--public", str(tmp_path / "public.npz"), "--num-private-images", "16", "--num-mixed", "4"]
    call += ["--training-seconds", "2", "--networks", str(tmp_path / "n.safetensors")]
    for _ in range(2):  # the second run reads the networks
        done = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "out"), "--format", "json"])
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)
        assert said["name"] == "published attack of 2020"
        assert "evidence" in said["metrics"]
        assert np.load(tmp_path / "out" / "recovered.npz")["images"].shape == (16, 3, 16, 16)
    assert (tmp_path / "n.safetensors").exists()


@pytest.mark.slow
def test_settings_make_a_release_whose_truth_scores_the_attack(tmp_path: Path) -> None:
    private = pictures(66, 1)
    np.savez(tmp_path / "private.npz", x=private.images, y=private.labels)
    np.savez(tmp_path / "pool.npz", x=pictures(400, 2).images)
    data = '[data]\nprivate = "private.npz"\npublic = "pool.npz"\nnum-private-images = 16\nreleases = 20\n'
    (tmp_path / "law.toml").write_text(data + '[encoding]\nmode = "compat"\n')
    call = ["attack", "run", "published-2020", "--settings", str(tmp_path / "law.toml")]
    done = CliRunner().invoke(app, [*call, "--training-seconds", "2", "--format", "json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["settings"]["num_encodings"] == 320
    assert 0 <= said["metrics"]["mean_ssim"] <= 1


def test_labels_are_asked_for_before_anything_is_trained(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", encodings=np.random.default_rng(0).normal(size=(40, 3, 8, 8)))
    np.savez(tmp_path / "p.npz", x=pictures(60, 1).images[:, :, :8, :8])
    call = ["attack", "run", "published-2020", "--encoded", str(tmp_path / "e.npz")]
    call += ["--public", str(tmp_path / "p.npz"), "--num-private-images", "4"]
    done = CliRunner().invoke(app, call)
    assert isinstance(done.exception, InvalidInputError)
    assert "labels" in str(done.exception)
