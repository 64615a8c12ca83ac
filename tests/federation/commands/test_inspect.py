"""``instahide inspect`` verifies, describes and draws; a damaged folder exits 4."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from federation.commands.inspect import inspect
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import IntegrityError, InvalidInputError
from instahide.images import ImageSet
from instahide.storage import save_encoded

app = typer.Typer()
app.command()(inspect)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    images = ImageSet(pixels, np.arange(40) % 4 // 3, ("benign", "[malignant]"))
    save_encoded(Encoder(EncoderConfig(), private=images).encode_epoch(), tmp_path / "encoded", shard_size=16)
    return tmp_path / "encoded"


def run(*words: object) -> click.testing.Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_whole_folder_is_described(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert "3 shard(s)" in result.stdout
    assert "40 of 3x16x16 (1 epoch(s))" in result.stdout
    assert "hardened, 4 images mixed (all private), folded-normal coefficients, 8-bit values" in result.stdout
    assert "[malignant]" in result.stdout


def test_json_has_the_facts(folder: Path) -> None:
    body = json.loads(run(folder, "--format", "json").stdout)
    assert body["whole"] is True
    assert (body["num_images"], body["num_shards"], body["image_shape"]) == (40, 3, [3, 16, 16])
    assert body["law"]["num_mixed"] == 4
    # 30 of 40 images are benign; each image is used in every slot exactly once, but the weights
    # differ, so the share is 0.75 only on average: 160 weights of about 1/4 put it well inside 0.6..0.9.
    assert 0.6 < body["labels"]["class_shares"]["benign"] < 0.9
    assert sum(body["labels"]["class_shares"].values()) == pytest.approx(1.0)
    assert 0.5 <= body["labels"]["mean_largest"] <= 1.0


def test_the_picture_shows_as_many_pairs_as_asked_for(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "--picture", tmp_path / "grid.png", "--samples", 20)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "grid.png") as picture:
        # 5 rows of 4 pairs; 16-pixel images are enlarged to 64, with gaps of 2.
        assert picture.size == (4 * (2 * 64 + 6) + 2, 5 * 66 + 2)
        assert np.asarray(picture).std() > 20


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "manifest.json"])
def test_a_damaged_file_is_named_with_exit_code_4(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    result = run(folder)
    assert isinstance(result.exception, IntegrityError)
    assert result.exception.exit_code == 4
    assert name in result.exception.message


def test_a_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    result = run(tmp_path / "nowhere")
    assert isinstance(result.exception, InvalidInputError)
    assert result.exception.exit_code == 2


def test_a_wrong_format_is_a_usage_error(folder: Path) -> None:
    assert run(folder, "--format", "xml").exit_code == 2


def test_help_teaches_with_an_example() -> None:
    assert "instahide inspect encoded/ --picture grid.png" in run("--help").output
