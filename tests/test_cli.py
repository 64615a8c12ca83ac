"""The command line as a whole: every verb's help, errors in two lines, true exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer

from federation import cli
from federation.commands.console import StoppedError
from instahide import __version__
from instahide.errors import FederationError, IntegrityError, InvalidInputError, RefusedError

INSTAHIDE = Path(sys.executable).with_name("instahide")
HEAVY = ("torch", "torchvision", "flwr", "sklearn", "matplotlib", "scipy", "numpy", "PIL")


def verbs(command: click.Command | None = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every verb that does something."""
    command = command or typer.main.get_command(cli.app)
    if not isinstance(command, click.Group):
        yield path
        return
    for name, inner in command.commands.items():
        yield from verbs(inner, (*path, name))


ALL_VERBS = sorted(verbs())


def docstring(words: tuple[str, ...]) -> str:
    command: Any = typer.main.get_command(cli.app)
    for word in words:
        command = command.commands[word]
    return command.callback.__doc__ or ""


def instahide(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(INSTAHIDE), *map(str, words)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """A data set with one picture in both of its splits."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 12, 12), dtype=np.uint8)
    path = tmp_path / "leaking.npz"
    np.savez(path, x_train=pixels, y_train=np.arange(30) % 2, x_test=pixels[:1], y_test=np.zeros(1, int))
    return path


def test_the_verbs_are_those_the_documents_name() -> None:
    assert {words[0] for words in ALL_VERBS} >= {"demo", "encode", "inspect", "train", "dataset", "node"}
    assert ("coordinator", "resume") in ALL_VERBS


@pytest.mark.parametrize("words", ALL_VERBS, ids=" ".join)
def test_every_verb_explains_itself_with_an_example(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.run([*words, "--help"]) == 0
    shown = capsys.readouterr()
    call = f"instahide {' '.join(words)}"
    assert f"Usage: {call}" in shown.out
    examples = [
        line.split(call)[1] for line in shown.out.splitlines() if call in line and "Usage:" not in line
    ]
    assert examples, "the help has no example"
    assert shown.err == ""
    for header in re.findall(r"^\s*\\?(\[[\w.-]+\])\s*$", docstring(words), flags=re.MULTILINE):
        assert header in shown.out, f"the help swallowed {header}: write it with a backslash"


def test_every_verb_that_ends_can_speak_json() -> None:
    group = typer.main.get_command(cli.app)
    for words in ALL_VERBS:
        command: click.Command = group
        for word in words:
            assert isinstance(command, click.Group)
            command = command.commands[word]
        has_format = any("--format" in option.opts for option in command.params)
        assert has_format == (words[-1] != "start"), words


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from federation import cli\n"
        f"for words in {ALL_VERBS!r}: assert cli.run([*words, '--help']) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"instahide {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message", "verb"),
    [
        (["frobnicate"], "No such command 'frobnicate'.", "instahide --help"),
        ([], "a verb is missing", "instahide VERB --help"),
        (["dataset"], "a verb is missing", "instahide dataset VERB --help"),
        (["node", "stop"], "No such command 'stop'.", "instahide node --help"),
        (["encode", "--frob"], "No such option: --frob", "instahide encode --help"),
        (["encode", "x"], "Missing option '--out'", "instahide encode --help"),
        (["train", "x", "--out", "y", "--epochs", "two"], "'--epochs'", "instahide train --help"),
        (["dataset", "inspect", "--format", "xml", "x"], "'--format'", "instahide dataset inspect --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_names_the_help_to_read(
    words: list[str], message: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(words) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith(f"hint: `{verb}`")


def fails_with(error: BaseException) -> Callable[..., None]:
    def app(**_: object) -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (InvalidInputError("no x", hint="give x"), 2, ["error: no x", "hint: give x"]),
        (RefusedError("too often", hint="stop"), 3, ["error: too often", "hint: stop"]),
        (IntegrityError("edited", hint="copy again"), 4, ["error: edited", "hint: copy again"]),
        (FederationError("node gone", hint="wait"), 5, ["error: node gone", "hint: wait"]),
        (StoppedError("interrupted: half", hint="go on"), 130, ["error: interrupted: half", "hint: go on"]),
        (KeyboardInterrupt(), 130, ["error: interrupted"]),
        (click.Abort(), 130, ["error: interrupted"]),
        (
            PermissionError(13, "Permission denied", "a/b"),
            1,
            ["error: Permission denied: a/b", "hint: check"],
        ),
        (
            ZeroDivisionError("by zero"),
            1,
            ["error: unexpected ZeroDivisionError", "hint: this is a fault of"],
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_has_its_exit_code_and_no_traceback(
    error: BaseException,
    code: int,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "app", fails_with(error))
    assert cli.run(["verb"]) == code
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == len(lines)
    for line, start in zip(shown, lines, strict=True):
        assert line.startswith(start)


def test_ctrl_c_inside_a_verb_ends_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("instahide.storage.EncodedFolder", interrupt)
    assert cli.run(["inspect", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("words", [("--debug", "inspect", "nowhere"), ("inspect", "nowhere", "--debug")])
def test_debug_shows_the_traceback_and_keeps_the_exit_code(tmp_path: Path, words: tuple[str, ...]) -> None:
    shown = instahide(*words, cwd=tmp_path)
    assert shown.returncode == 2
    assert "Traceback" in shown.stderr
    assert "error: nowhere is not a folder" in shown.stderr


def test_without_debug_a_mistake_is_two_lines(tmp_path: Path) -> None:
    shown = instahide("inspect", "nowhere", cwd=tmp_path)
    assert shown.returncode == 2
    assert [line.split(":")[0] for line in shown.stderr.splitlines()] == ["error", "hint"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_reader_that_leaves_changes_no_exit_code(leaking: Path, form: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        shown = instahide("dataset", "inspect", leaking, "--format", form, stdout=writer)
    finally:
        os.close(writer)
    assert shown.returncode == 4
    assert "two splits" in shown.stderr
    assert "roken" not in shown.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [("--version",), ("coordinator", "settings", "--format", "json")])
def test_output_that_cannot_be_written_is_a_failure(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        shown = instahide(*words, stdout=full)
    assert shown.returncode == 1
    assert "No space left on device" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert "Exception ignored" not in shown.stderr
