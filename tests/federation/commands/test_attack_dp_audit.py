"""``instahide attack run dp-audit``, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from federation import cli
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.storage import save_encoded

from ...contracts import image_set

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

pytest.importorskip("dp_accounting")


def audit(*words: object) -> int:
    return cli.run(["attack", "run", "dp-audit", *map(str, words)])


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    answer = json.loads(capsys.readouterr().out)
    assert isinstance(answer, dict)
    return answer


def test_a_law_for_an_epsilon_is_audited_and_planted_faults_are_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("--target-epsilon", 8, "--trials", 400, "--out", tmp_path / "out", "--format", "json")
    assert audit(*words) == 0
    answer = said(capsys)
    assert answer["leaked"] is False
    assert answer["checks"]["power"].count("found") == 3  # type: ignore[index]
    assert (tmp_path / "out" / "result.json").exists()


def test_a_claim_that_is_too_bold_is_contradicted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--target-epsilon", 10, "--claimed-epsilon", 0.1, "--trials", 400, "--no-power")
    assert audit(*words, "--fail-on-leak") == 3
    assert "claimed privacy is false" in capsys.readouterr().out


def test_the_law_of_a_release_is_audited(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = EncoderConfig(
        mode="dp",
        num_mixed=2,
        noise_law="laplace",
        noise_scale=40.0,
        label_noise_scale=1.0,
        output_range=99.0,
    )
    save_encoded(Encoder(config, private=image_set(20)).encode_epoch(), tmp_path / "encoded")
    assert audit("--encoded", tmp_path / "encoded", "--one-run", "--trials", 200, "--format", "json") == 0
    assert said(capsys)["settings"]["law"]["noise_law"] == "laplace"  # type: ignore[index]


def test_the_law_of_a_settings_file_is_audited(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    images = image_set(20)
    np.savez(tmp_path / "x.npz", x=images.images, y=images.labels)
    law = 'mode = "dp"\nnoise-law = "gaussian"\nnum-mixed = 2\nnoise-scale = 40.0\n'
    law += "label-noise-scale = 1.0\noutput-range = 99.0\n"
    (tmp_path / "law.toml").write_text(f'[data]\nprivate = "x.npz"\nreleases = 3\n[encoding]\n{law}')
    words = ("--settings", tmp_path / "law.toml", "--one-run", "--trials", 200, "--format", "json")
    assert audit(*words) == 0
    answer = said(capsys)
    assert answer["settings"]["law"]["noise_scale"] == 40.0  # type: ignore[index]
    assert answer["settings"]["releases"] == 3  # type: ignore[index]
    assert audit("--settings", tmp_path / "law.toml", "--encoded", tmp_path) == 2


def test_a_release_without_noise_has_no_epsilon(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_encoded(Encoder(EncoderConfig(), private=image_set(20)).encode_epoch(), tmp_path / "encoded")
    assert audit("--encoded", tmp_path / "encoded", "--trials", 100) == 3
    assert "no privacy guarantee" in capsys.readouterr().err


def test_a_private_training_run_is_audited_in_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--mechanism", "training", "--epochs", 1, "--sample-rate", 1.0, "--trials", 100, "--one-run")
    assert audit(*words, "--format", "json") == 0
    assert said(capsys)["settings"]["num_steps"] == 1  # type: ignore[index]
