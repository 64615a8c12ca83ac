"""``instahide theory cntk`` as a researcher meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from federation import cli
from theory_modules.kernel_loops import active_path


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    data = load_digits()
    pixels = np.round(data.images * 15.9375).astype(np.uint8)
    path = tmp_path / "digits.npz"
    np.savez(
        path,
        x_train=pixels[:200],
        y_train=data.target[:200],
        x_test=pixels[900:980],
        y_test=data.target[900:980],
    )
    return path


def test_it_measures_every_method_at_every_size_and_draws(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "curves.png"
    words = [
        "theory", "cntk", "--data", str(digits), "--sizes", "20,60", "--image-size", "8", "--num-relus", "2",
        "--num-patches", "4", "--network-epochs", "2", "--out", str(picture), "--format", "json",
    ]  # fmt: skip
    assert cli.run(words) == 0
    result = json.loads(capsys.readouterr().out)
    points = result["result"]["points"]
    methods = ["vanilla", "global", "local", "patches", "network"]
    assert [(p["method"], p["num_train"]) for p in points] == [(m, n) for m in methods for n in (20, 60)]
    best = {p["method"]: p["accuracy"] for p in points if p["num_train"] == 60}
    assert min(best[name] for name in ("vanilla", "global", "local")) > 0.7
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_lines_for_people_name_what_was_tested(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "theory",
        "cntk",
        "--data",
        str(digits),
        "--sizes",
        "20",
        "--methods",
        "vanilla",
        "--num-test",
        "50",
    ]
    assert cli.run([*words, "--image-size", "8"]) == 0
    shown = capsys.readouterr().out
    assert "accuracy on 50 test images of 8 x 8, %" in shown
    assert "vanilla" in shown
    assert f"kernels by: {active_path()}" in shown


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--methods", "best"], "there is no method 'best'"),
        (["--sizes", "ten"], "--sizes is 'ten'"),
        (["--sizes", "1000"], "1000 training images are asked for and there are 200"),
        (
            ["--methods", "patches", "--image-size", "4", "--sizes", "20"],
            "patch_size is 5 and images are 4 x 4",
        ),
        (["--out", "no/such/folder.png"], "no/such/folder.png"),
    ],
)
def test_wrong_settings_are_two_lines_and_code_2(
    digits: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert cli.run(["theory", "cntk", "--data", str(digits), "--image-size", "8", *extra]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "hint: " in shown
