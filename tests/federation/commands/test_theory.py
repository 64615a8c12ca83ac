"""``instahide theory``: what is printed, what is written, what is refused."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pytest

from federation import cli


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of 6x6 pictures, bright left or bright right, with a test split."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = rng.integers(0, 80, (60, 6, 6), dtype=np.uint8)
    images[labels == 0, :, :3] += 150
    images[labels == 1, :, 3:] += 150
    path = tmp_path / "pictures.npz"
    np.savez(path, x_train=images[:40], y_train=labels[:40], x_test=images[40:], y_test=labels[40:])
    return path


def test_complete_prints_a_row_a_method_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    words = "theory complete --experiment rank5 --size 20 --count 300 --seeds 1 --depth 3 --out"
    assert cli.run([*words.split(), str(tmp_path / "curve.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:3] for line in lines[:1]] == [["depth", "3"]]
    assert "nuclear" in lines[1]
    assert lines[2].startswith("picture: ")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("experiment", ["rank5 --size 20 --count 300 --seeds 1 --depth 3", "norm-blow-up"])
def test_a_page_holds_picture_numbers_and_what_they_are(
    experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    words = f"theory complete --experiment {experiment} --out"
    assert cli.run([*words.split(), str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out.splitlines()
    page = (tmp_path / "page.html").read_text()
    assert printed[-1] == f"page: {tmp_path / 'page.html'}"
    assert html.escape(printed[0]) in page
    assert "<h1>instahide theory complete</h1>" in page
    assert "least nuclear norm" in page.replace("\n", " ")
    assert "data:image/png;base64," in page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_exp_lr_measures_on_images_of_the_users(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--seeds 2 --epochs 2 --batch-size 20 --width 2 --image-size 6 --double --format json"
    assert cli.run(["theory", "exp-lr", "--data", str(pictures), *words.split()]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert (result["num_train"], result["num_test"], result["seeds"]) == (40, 20, [0, 1])
    equivalent = result["arms"]["equivalent"]
    assert equivalent["loss_distance"] < 1e-10
    assert equivalent["minus_step_decay"] == 0.0
    assert equivalent["interval"] == [0.0, 0.0]
    assert result["arms"]["plain growth"]["loss_distance"] > 1e-6


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["complete", "--experiment", "movielens"], "movielens needs --data", "--help"),
        (["complete", "--experiment", "rank5", "--seeds", "0"], "seeds is 0", "--help"),
        (["complete", "--experiment", "rank5", "--out", "no/such/folder.png"], "folder.png", "exists"),
        (["exp-lr", "--weight-decay", "1"], "complex roots", "below 0.00263"),
        (["exp-lr", "--depth", "9"], "6n + 2", "--help"),
    ],
)
def test_what_cannot_be_done_is_said_in_two_lines(
    words: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["theory", *words]) == 2
    error, advice = capsys.readouterr().err.splitlines()[-2:]
    assert message in error
    assert hint in advice


def test_ctrl_c_leaves_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("theory_modules.matrix_completion_curves.draw_curve", interrupt)
    monkeypatch.setattr("theory_modules.matrix_completion_experiments.draw_curve", interrupt)
    words = "theory complete --experiment rank5 --size 10 --count 90 --seeds 1 --depth 2 --out"
    assert cli.run([*words.split(), str(tmp_path / "curve.png")]) == 130
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.endswith("error: interrupted\n")
