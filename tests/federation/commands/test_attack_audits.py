"""``instahide attack run audits`` as a user types it."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from federation import cli
from instahide.attacks.implementation_audits.planted import Faults, plant, smooth_pictures
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.storage import save_encoded

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical


def run(*words: object) -> int:
    return cli.run(["attack", "run", "audits", *map(str, words)])


@pytest.fixture
def encoded(tmp_path: Path) -> Path:
    pool = smooth_pictures(100, seed=2)
    save_encoded(
        Encoder(EncoderConfig(), private=smooth_pictures(60, seed=1), public=pool).encode_epoch(),
        tmp_path / "e",
    )
    np.savez(tmp_path / "pool.npz", x=pool.images)
    return tmp_path / "e"


def test_the_default_mode_is_found_sound(
    encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--encoded", encoded, "--public", tmp_path / "pool.npz", "--artefact", encoded, "--seed-bits", 6)
    assert run(*words, "--out", tmp_path / "r", "--no-checks", "--format", "json", "--fail-on-leak") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["leaked"] is False
    assert len(answer["audits"]) == 10
    assert (tmp_path / "r/result.json").is_file()
    assert (tmp_path / "r/mask-reuse/result.json").is_file()


def test_our_own_encoder_is_audited_under_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, pool = smooth_pictures(90, seed=1), smooth_pictures(100, seed=2)
    np.savez(tmp_path / "private.npz", x=private.images, y=private.labels)
    np.savez(tmp_path / "pool.npz", x=pool.images)
    data = '[data]\nprivate = "private.npz"\npublic = "pool.npz"\nnum-private-images = 30\nreleases = 2\n'
    (tmp_path / "law.toml").write_text(data)
    words = ("--settings", tmp_path / "law.toml", "--seed-bits", 6, "--no-checks", "--format", "json")
    assert run(*words) == 0
    audits = {audit["name"]: audit for audit in json.loads(capsys.readouterr().out)["audits"]}
    assert len(audits) == 9
    # Two epochs in the data's order are what this audit needs to decide anything.
    assert audits["fixed pairs"]["settings"]["epochs"] == 2
    assert audits["fixed pairs"]["settings"]["in_data_order"] is True
    assert audits["fixed pairs"]["leaked"] is False
    assert run(*words, "--encoded", tmp_path) == 2
    assert "--encoded has no meaning" in capsys.readouterr().err


def test_a_foreign_file_with_faults_leaks_and_can_fail_a_pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EncoderConfig(num_mixed=2, num_private=2, mode="compat")
    mean, std = 0.5, 0.25
    levels = (np.arange(256)[None, :] / 255 - mean) / std
    weak = plant(
        smooth_pictures(40, seed=1), config, Faults(pixel_values=levels, mask_pool=5), epochs=2
    ).release
    np.savez(tmp_path / "w.npz", encodings=weak.encodings, labels=weak.labels)
    words = ("--encoded", tmp_path / "w.npz", "--num-mixed", 2, "--num-private", 2, "--epochs", 2)
    more = ("--pixel-mean", mean, "--pixel-std", std, "--seed-bits", 6, "--no-checks", "--fail-on-leak")
    assert run(*words, *more) == 3
    said = capsys.readouterr()
    assert "LEAKS   lattice decoding" in said.out
    assert "LEAKS   mask reuse" in said.out
    assert "error:" in said.err


def test_files_alone_can_be_scanned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"rng": random.Random(1).getstate()}))
    assert run("--artefact", tmp_path / "c.pkl") == 0
    assert "c.pkl: rng" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to audit"),
        (("--encoded", "nowhere.npz"), "nowhere.npz"),
        (("--artefact", "nowhere.pt"), "not there"),
    ],
)
def test_wrong_input_is_said(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert message in capsys.readouterr().err


def test_wrong_normalisations_are_refused(encoded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--encoded", encoded, "--pixel-mean", "a,b") == 2
    assert run("--encoded", encoded, "--pixel-std", "0") == 2
    assert run("--encoded", encoded, "--pixel-mean", "0.1,0.2") == 2
    assert "channels" in capsys.readouterr().err
