"""``instahide evaluate-kernel`` as a data scientist meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from federation import cli


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    data = load_digits()
    pixels = np.kron(np.round(data.images * 15.9375), np.ones((2, 2))).astype(np.uint8)
    path = tmp_path / "digits.npz"
    np.savez(
        path,
        x_train=pixels[:120],
        y_train=data.target[:120],
        x_test=pixels[900:960],
        y_test=data.target[900:960],
    )
    return path


def test_it_compares_plain_images_and_encodings(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "evaluate-kernel",
        str(digits),
        "--num-mixed",
        "2",
        "--num-views",
        "2",
        "--kernel",
        "fully-connected",
    ]
    assert cli.run([*words, "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["setting"] for row in result["settings"]] == [
        "plain images",
        "k = 2, |x|",
        "k = 2, as encoded",
    ]
    plain, absolute, _ = result["settings"]
    assert plain["plain"]["accuracy"] > 0.6
    assert plain["encoded_once"] is None
    assert absolute["encoded_average"]["num_views"] == 2
    assert cli.run(words) == 0
    shown = capsys.readouterr().out
    assert "fully-connected tangent kernel, 120 training rows, 60 test images" in shown
    assert "k = 2, |x|" in shown
    assert "epsilon" not in shown


def test_the_pool_the_mode_and_the_size_are_settings(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "evaluate-kernel", str(digits), "--public", str(digits), "--mode", "mixup", "--num-mixed", "3",
        "--image-size", "8", "--num-images", "40", "--num-views", "1", "--format", "json",
    ]  # fmt: skip
    assert cli.run(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["setting"] for row in result["settings"]] == ["plain images", "k = 3, as encoded"]
    assert {row["num_train"] for row in result["settings"]} == {40}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--kernel", "rbf"], "there is no kernel 'rbf'"),
        (["--mode", "strong"], "strong"),
        (["--num-mixed", "0"], "num_mixed"),
        (["--test", "missing.npz"], "missing.npz"),
    ],
)
def test_wrong_settings_are_two_lines_and_code_2(
    digits: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert cli.run(["evaluate-kernel", str(digits), *extra]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "hint: " in shown
