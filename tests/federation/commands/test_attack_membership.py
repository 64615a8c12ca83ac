"""``instahide attack run membership`` and ``model-membership``, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation import cli
from instahide.attacks.model_membership.scores_file import write_scores_file
from instahide.attacks.model_membership.shadows import halves
from instahide.attacks.model_membership.view import ModelView
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.images import ImageSet

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical


def blotches(count: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(count, 20, 20))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(1, 2)).mean(axis=(3, 4))
    return (128 + 260 * smooth).clip(0, 255).astype(np.uint8)


def run(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict[str, Any]:
    assert cli.run([str(word) for word in ("attack", "run", *words)]) == code
    printed = capsys.readouterr()
    return json.loads(printed.out) if printed.out.startswith("{") else {"error": printed.err}


def model_answers(path: Path, *, gain: float, seed: int = 0) -> None:
    """Log-odds with and without a candidate, ``gain`` apart: the law of a target is that of its shadows."""
    rng = np.random.default_rng(seed)
    truth, members = halves(600, 1, rng)[0], halves(600, 8, rng)
    difficulty, noise = rng.normal(0, 2, 600), rng.normal(size=(17, 600))
    view = ModelView(difficulty + gain * truth + noise[-1], difficulty + gain * members + noise[:-1], members)
    write_scores_file(path, view, truth)


def test_files_with_labels_give_figures_with_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private = ImageSet(blotches(60, 1), np.arange(60) % 3)
    encoded = Encoder(EncoderConfig(num_mixed=2, mode="compat"), private=private).encode_epoch()
    np.savez(tmp_path / "e.npz", encodings=encoded.images.numpy(), labels=encoded.labels.numpy())
    np.savez(tmp_path / "in.npz", x=private.images, y=private.labels)
    np.savez(tmp_path / "out.npz", x=blotches(200, 2), y=np.arange(200) % 3)
    np.savez(tmp_path / "public.npz", x=blotches(800, 3))
    files = (
        "--members",
        tmp_path / "in.npz",
        "--others",
        tmp_path / "out.npz",
        "--public",
        tmp_path / "public.npz",
    )
    law = ("--encoded", tmp_path / "e.npz", "--num-mixed", 2, "--num-private", 2, "--format", "json")
    result = run(capsys, "membership", *law, *files)
    assert result["leaked"]
    assert result["settings"]["uses_labels"]
    assert result["settings"]["uses"] == 2
    assert set(result["checks"]) == {"power", "null"}
    assert result["intervals"]["tpr_at_1_percent_fpr"][0] <= result["metrics"]["tpr_at_1_percent_fpr"]
    refused = run(capsys, "membership", *law, *files, "--fail-on-leak", code=3)
    assert "leaked" in refused or "fail-on-leak" in refused["error"]


def test_settings_make_the_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "all.npz", x=blotches(700, 4), y=np.arange(700) % 3)
    (tmp_path / "law.toml").write_text(
        '[data]\nprivate = "all.npz"\nnum-private-images = 40\n\n[encoding]\nnum-mixed = 2\nmode = "compat"\n'
    )
    result = run(capsys, "membership", "--settings", tmp_path / "law.toml", "--format", "json")
    assert result["settings"]["num_members"] == 40
    assert result["settings"]["num_others"] == 330
    assert result["leaked"]
    changed = run(capsys, "membership", "--settings", tmp_path / "law.toml", "--copies", "--format", "json")
    assert changed["curves"]["brightness"][0][0] == 0
    assert set(changed["curves"]) == {"shift", "crop", "brightness", "noise", "jpeg"}


def test_half_of_the_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "needed together" in run(capsys, "membership", "--encoded", tmp_path, code=2)["error"]


def test_other_peoples_answers_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_answers(tmp_path / "leaky.npz", gain=3.0)
    model_answers(tmp_path / "tight.npz", gain=0.0)
    leaky = run(capsys, "model-membership", "--scores", tmp_path / "leaky.npz", "--format", "json")
    tight = run(capsys, "model-membership", "--scores", tmp_path / "tight.npz", "--format", "json")
    assert leaky["leaked"]
    assert leaky["metrics"]["auc_lira_online"] > 0.9
    assert leaky["curve_axes"][0].endswith("(log)")
    assert tight["leaked"] is not True


def test_models_are_trained_on_the_images_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "images.npz", x=blotches(120, 5), y=np.random.default_rng(0).integers(0, 3, 120))
    quick = ("--num-shadows", 6, "--epochs", 20, "--batch-size", 16, "--canaries", 0, "--format", "json")
    plain = run(capsys, "model-membership", tmp_path / "images.npz", *quick)
    # Labels are coin throws, so only a memory of the images can get them right.
    assert plain["metrics"]["accuracy_inside"] > plain["metrics"]["accuracy_outside"] + 0.2
    assert plain["leaked"]
    (tmp_path / "law.toml").write_text(
        '[data]\nprivate = "images.npz"\nreleases = 3\n[encoding]\nnum-mixed = 2\n'
    )
    by_options = (tmp_path / "images.npz", "--encode", "--num-mixed", 2, "--releases", 3)
    for words in (by_options, ("--settings", tmp_path / "law.toml")):
        encoded = run(capsys, "model-membership", *words, *quick, "--queries", "encoded")
        assert encoded["settings"]["scheme"] == "inside"
        assert encoded["settings"]["law"]["num_mixed"] == 2
        assert encoded["settings"]["releases"] == 3
        assert any("encoded views" in line for line in encoded["assumptions"])
    assert "how to encode" in run(capsys, "model-membership", *words, "--encode", code=2)["error"]


def test_options_that_do_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "images.npz", x=blotches(60, 5), y=np.arange(60) % 2)
    error = run(capsys, "model-membership", tmp_path / "images.npz", "--fresh", code=2)["error"]
    assert "--encode" in error
    assert "one of the three" in run(capsys, "model-membership", code=2)["error"]
