from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from instahide.attacks.settings import AttackSettings, choose_evenly, read_settings, rehearse
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError

TEXT = """
[data]
private = "scans.npz"
public = "pool.npz"
num-private-images = 40
releases = 3
[encoding]
num-mixed = 6
mode = "compat"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "scans.npz", x=rng.integers(0, 256, (120, 12, 12), dtype=np.uint8), y=np.arange(120) % 3
    )
    np.savez(tmp_path / "pool.npz", x=rng.integers(0, 256, (60, 14, 14, 3), dtype=np.uint8))
    (tmp_path / "settings.toml").write_text(TEXT)
    return tmp_path


def test_settings_say_what_to_encode_and_how(folder: Path) -> None:
    settings = read_settings(folder / "settings.toml")
    assert settings == AttackSettings(
        private=folder / "scans.npz",
        public=folder / "pool.npz",
        num_private_images=40,
        releases=3,
        encoding=EncoderConfig(num_mixed=6, mode="compat"),
    )


def test_a_rehearsal_encodes_some_and_keeps_the_others(folder: Path) -> None:
    rehearsal = rehearse(read_settings(folder / "settings.toml"))
    assert len(rehearsal.replica.encoded) == 40 * 3
    assert rehearsal.replica.encoded.scheme == "cross"
    assert len(rehearsal.others) == 80
    inside = {image.tobytes() for image in rehearsal.replica.truth.images.images}
    assert not inside & {image.tobytes() for image in rehearsal.others.images}


def test_images_are_chosen_as_evenly_as_the_classes_allow() -> None:
    labels = np.array([0] * 50 + [1] * 50 + [2] * 4)
    chosen = choose_evenly(labels, 34, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [15, 15, 4]
    assert len(set(chosen.tolist())) == 34
    assert not np.array_equal(chosen, choose_evenly(labels, 34, seed=2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data", "cannot be read"),
        ("[data]\nreleases = 1", "name no private images"),
        ('[data]\nprivate = "x"\nimages = 3', "unknown key of .data. 'images'"),
        ('[data]\nprivate = "x"\n[encode]', "unknown section 'encode'"),
        ('[data]\nprivate = "x"\n[encoding]\nk = 4', "unknown key of .encoding. 'k'"),
        ('[data]\nprivate = "x"\nreleases = 0', "releases is 0"),
        ('[data]\nprivate = "x"\n[encoding]\nnum-mixed = 40', "num_mixed is 40"),
    ],
)
def test_wrong_settings_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        read_settings(tmp_path / "s.toml")


def test_too_few_images_are_refused(folder: Path) -> None:
    (folder / "settings.toml").write_text(TEXT.replace("40", "100"))
    with pytest.raises(InvalidInputError, match="120 images; 100 are to be encoded"):
        rehearse(read_settings(folder / "settings.toml"))
