"""``instahide attack``: list, report and challenge from the shell, and what every attack verb shares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from federation import cli
from instahide.attacks import challenge
from instahide.attacks.catalogue import CATALOGUE
from instahide.attacks.challenge import Tier
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.images import ImageSet
from instahide.storage import save_encoded

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical


def run(*words: object) -> int:
    return cli.run([str(word) for word in words])


def blotches(count: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(count, 20, 20))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(1, 2)).mean(axis=(3, 4))
    return (128 + 260 * smooth).clip(0, 255).astype(np.uint8)


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    """A release of 60 images at k = 1, members, others, and public images of the same kind."""
    private = ImageSet(blotches(60, 1), np.arange(60) % 3)
    save_encoded(
        Encoder(EncoderConfig(num_mixed=1, num_private=1), private=private).encode_epoch(), tmp_path / "e"
    )
    np.savez(tmp_path / "members.npz", x=private.images)
    np.savez(tmp_path / "others.npz", x=blotches(300, 2))
    np.savez(tmp_path / "public.npz", x=blotches(800, 3))
    return tmp_path


def test_every_attack_of_the_catalogue_is_listed_and_runs_under_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("attack", "list", "--format", "json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in listed] == [item.name for item in CATALOGUE]
    for item in CATALOGUE:
        assert run("attack", "run", item.name, "--help") == 0
        assert item.name in capsys.readouterr().out


def test_an_audit_goes_from_a_release_to_a_page(audit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--encoded", audit / "e", "--members", audit / "members.npz", "--others", audit / "others.npz")
    done = run(
        "attack", "run", "membership", *words, "--public", audit / "public.npz",
        "--out", audit / "r/membership",
        "--format", "json",
    )  # fmt: skip
    assert done == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"]["auc"] > 0.9
    assert run("attack", "report", audit / "r") == 0
    assert "not tried" in capsys.readouterr().out
    assert (audit / "r/index.html").stat().st_size > 2000
    assert json.loads((audit / "r/report.json").read_text())["threats"]["membership"]["tried"]


def test_a_report_of_nothing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("attack", "report", tmp_path) == 2
    assert "holds no attack result" in capsys.readouterr().err


def test_a_challenge_is_made_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(challenge.TIERS, "once", Tier(10, 1, EncoderConfig(mode="compat"), True, "small"))
    np.savez(tmp_path / "data.npz", x=blotches(80, 0), y=np.arange(80) % 2)
    out = tmp_path / "challenge"
    assert run("attack", "challenge", "make", tmp_path / "data.npz", "--tier", "once", "--out", out) == 0
    np.savez(tmp_path / "answer.npz", images=np.zeros((10, 1, 16, 16), np.float32))
    capsys.readouterr()
    words = ("--key", out / "opening-key.txt", "--recovered", tmp_path / "answer.npz", "--format", "json")
    assert run("attack", "challenge", "score", out / "public", *words) == 0
    assert json.loads(capsys.readouterr().out)["mean_ssim"] < 0.5
    (out / "opening-key.txt").write_text("00" * 32)
    assert run("attack", "challenge", "score", out / "public", *words) == 4
    assert "not the key that was committed to" in capsys.readouterr().err


def test_an_unknown_tier_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("attack", "challenge", "make", "x.npz", "--tier", "easy", "--out", tmp_path / "c") == 2
    assert "no tier 'easy'" in capsys.readouterr().err
