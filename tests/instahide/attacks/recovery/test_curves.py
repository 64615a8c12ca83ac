from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from instahide.attacks.image_metrics import RecoveryScore, score_recovery
from instahide.attacks.recovery.curves import CurvePoint, affordable, recovery_curve
from instahide.attacks.settings import AttackSettings
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError


def point(value: int, *, leaked: bool, error: float) -> CurvePoint:
    originals = np.random.default_rng(0).uniform(-1, 1, (4, 1, 8, 8)).astype(np.float32)
    answers = np.clip(originals + error * np.random.default_rng(1).normal(size=originals.shape), -1, 1)
    score: RecoveryScore = score_recovery(answers, originals)
    return CurvePoint(value, score, leaked, 1.0)


def test_what_is_affordable_ends_with_the_first_leak() -> None:
    safe, clear = point(1, leaked=False, error=9), point(2, leaked=False, error=0)
    known = point(2, leaked=True, error=9)
    assert safe.recognisable == 0
    assert clear.recognisable == 1
    assert affordable([safe, point(5, leaked=False, error=9)]) == 5
    assert affordable([safe, clear, point(5, leaked=False, error=9)]) == 1
    assert affordable([safe, known]) == 1
    assert affordable([point(1, leaked=True, error=9)]) == 0


@pytest.fixture
def settings(tmp_path: Path) -> AttackSettings:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    np.savez(tmp_path / "hospital.npz", x=pixels[:700], y=bunch.target[:700])
    np.savez(tmp_path / "pool.npz", x=pixels[700:1400])
    return AttackSettings(
        private=tmp_path / "hospital.npz",
        public=tmp_path / "pool.npz",
        num_private_images=30,
        encoding=EncoderConfig(num_mixed=4, num_private=2, mode="mixup"),
    )


def test_more_releases_leak_more(settings: AttackSettings) -> None:
    """Without a sign mask (mixup) and with the pairing given, T = 10 is nearly a plain regression."""
    result = recovery_curve(settings, "releases", [10, 1], tier="decode", training_seconds=1)
    line = dict(result.curves["mean SSIM"])
    assert line[10.0] > line[1.0] + 0.1
    assert line[10.0] > 0.8
    assert result.settings["values"] == [1, 10]
    assert result.leaked
    assert "affordable_releases" in result.settings


def test_along_other_numbers_the_law_changes(settings: AttackSettings) -> None:
    result = recovery_curve(settings, "num-mixed", [3, 6], tier="decode", training_seconds=1)
    assert [x for x, _ in result.curves["mean SSIM"]] == [3.0, 6.0]


def test_unknown_axes_and_no_values_are_refused(settings: AttackSettings) -> None:
    with pytest.raises(InvalidInputError, match="no curve along 'colour'"):
        recovery_curve(settings, "colour", [1])
    with pytest.raises(InvalidInputError, match="no value to try"):
        recovery_curve(settings, "releases", [])
