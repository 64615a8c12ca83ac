"""`instahide dataset inspect` from the shell's side: text, JSON, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from federation.commands.dataset import app
from instahide.errors import IntegrityError, InvalidInputError

X = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
Y = np.arange(40) % 2


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    path = tmp_path / "clean.npz"
    np.savez(path, x_train=X[:30], y_train=Y[:30], x_test=X[30:], y_test=Y[30:], classes=["well", "[sick]"])
    return path


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    path = tmp_path / "leaking.npz"
    np.savez(path, x_train=X[:30], y_train=Y[:30], x_test=X[29:], y_test=Y[29:])
    return path


def run(*arguments: str | Path):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def code(result) -> int:
    """The exit code the command line would leave with."""
    return result.exception.exit_code


def test_a_clean_data_set_exits_zero_and_shows_its_classes(clean):
    result = run(clean)
    assert result.exit_code == 0, result.output
    for text in ("npz arrays", "8x8 (40)", "well", "[sick]", "no leaks between splits found"):
        assert text in result.output


def test_a_leak_exits_four_and_names_the_pictures(leaking):
    result = run(leaking)
    assert code(result) == 4
    assert "two splits" in result.exception.message
    assert "train[29] = test[0]" in result.output
    assert "no leaks" not in result.output


def test_json_is_one_object_with_a_verdict(clean, leaking):
    good, bad = run(clean, "--format", "json"), run(leaking, "--format", "json")
    assert (good.exit_code, code(bad)) == (0, 4)
    assert json.loads(good.stdout)["ok"] is True
    report = json.loads(bad.stdout)
    assert report["ok"] is False
    assert report["duplicates_across"] == [["train[29]", "test[0]"]]


def test_too_many_unusable_files_exit_four_unless_allowed(tmp_path):
    (tmp_path / "a").mkdir()
    for index in range(9):
        Image.fromarray(X[index]).save(tmp_path / f"a/{index}.png")
    (tmp_path / "a/x\x1b[31m.png").write_bytes(b"x")
    result = run(tmp_path)
    assert code(result) == 4
    assert "a/x\\x1b[31m.png: not a picture" in result.output
    assert "\x1b[31m.png" not in result.output
    assert "10.0% of the files" in result.exception.message
    assert run(tmp_path, "--max-bad-fraction", "0.1").exit_code == 0


def test_mistakes_are_errors_of_the_toolkit(tmp_path):
    missing = run(tmp_path / "nowhere")
    assert isinstance(missing.exception, InvalidInputError)
    (tmp_path / "d.npz").write_bytes(b"not a zip")
    assert isinstance(run(tmp_path / "d.npz").exception, IntegrityError)
    assert run(tmp_path, "--max-bad-fraction", "2").exit_code == 2


def test_subjects_are_counted_and_never_named(tmp_path):
    for index in range(3):
        Image.fromarray(X[index]).save(tmp_path / f"{index}.png")
    rows = [
        "path,label,patient_id,split",
        "0.png,a,SECRET,train",
        "1.png,a,SECRET,test",
        "2.png,b,SECRET-2,test",
    ]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    text, data = run(tmp_path), run(tmp_path, "--format", "json")
    assert code(text) == code(data) == 4
    assert "subjects in two splits (leak): 1" in text.output
    assert "SECRET" not in text.output + data.output


def test_help_states_the_exit_codes_and_an_example():
    result = CliRunner().invoke(app, ["inspect", "--help"], terminal_width=200)
    assert result.exit_code == 0
    assert "Exit code: 0 fine" in result.output
    assert "instahide dataset inspect chest/ --format json" in result.output


def test_importing_the_command_stays_light():
    heavy = "{'torch', 'numpy', 'PIL', 'pydicom', 'rich.table'} & set(sys.modules)"
    code = f"import sys, federation.commands.dataset; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
