"""The documents tell the truth: their commands run or parse, their links and test names exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import typer
from PIL import Image

from federation.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = sorted(
    [*ROOT.glob("*.md")]
    + [
        path
        for room in ("instahide", "federation", "theory_modules", "deploy")
        for path in (ROOT / room).rglob("*.md")
    ]
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """The README's text from a bold or ## title to the next of its kind."""
    text = README.read_text(encoding="utf-8")
    after = text.split(title, 1)[1]
    return re.split(r"^(?:\*\*\d|## )", after, maxsplit=1, flags=re.MULTILINE)[0]


def command_lines(text: str) -> Iterator[str]:
    """Every call of instahide in code: whole lines of blocks, and code inside a sentence."""
    for line in text.splitlines():
        if line.strip().startswith("instahide "):
            yield line.strip()
    yield from re.findall(r"`(instahide [^`]*)`", text)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with what the README's commands take: scans, test scans and public patches."""
    rng = np.random.default_rng(0)
    for folder, count in (
        ("scans/well", 20),
        ("scans/ill", 20),
        ("scans-test/well", 6),
        ("scans-test/ill", 6),
    ):
        _write_pictures(tmp_path / folder, rng.integers(0, 256, (count, 16, 16), dtype=np.uint8))
    _write_pictures(tmp_path / "patches", rng.integers(0, 256, (40, 16, 16), dtype=np.uint8))
    return tmp_path


def _write_pictures(folder: Path, pictures: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for index, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")


def run(program: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": programs, "INSTAHIDE_LEDGER": str(folder / "ledger.sqlite3")}
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_readmes_python_runs_as_it_stands(tmp_path: Path) -> None:
    [program] = blocks(README.read_text(encoding="utf-8"), "python")
    done = run([sys.executable, "-W", "error", "-c", program], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "encoded-from-python/manifest.json").is_file()


@pytest.mark.timeout(1200)  # many whole commands in one test, on machines with much else to do
def test_the_readmes_commands_for_who_holds_images_run_as_they_stand(here: Path) -> None:
    for title in ("**1. Encode", "**2. Train", "**3. Attack"):
        [commands] = blocks(section(title), "bash")
        done = run(["bash", "-euo", "pipefail", "-c", commands], here)
        assert done.returncode == 0, done.stderr
    assert (here / "grid.png").is_file()
    assert (here / "audit/index.html").is_file()
    models = sorted(path.parent.name for path in here.glob("*/model.safetensors"))
    assert len(models) == blocks(section("**2. Train"), "bash")[0].count("--out")


def test_the_second_encoding_is_refused_as_the_readme_says(here: Path) -> None:
    first, second = (run(["instahide", "encode", "scans", "--out", name], here) for name in ("one", "two"))
    assert (first.returncode, second.returncode) == (0, 3), first.stderr + second.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_command_line_in_the_documents_parses(document: Path) -> None:
    for line in command_lines(document.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)[1:]
        command: click.Command = typer.main.get_command(app)
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            assert words[0] in command.commands, f"{line}: there is no such verb"
            command = command.commands[words.pop(0)]
        if words and not isinstance(command, click.Group):  # a bare verb is a name, not a call
            command.make_context(line, words)


def test_a_document_with_a_wrong_command_would_be_found() -> None:
    text = "x `instahide attack`\n```bash\n  instahide train x --out y  # why\n```"
    assert sorted(command_lines(text)) == ["instahide attack", "instahide train x --out y  # why"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_between_files_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    inside = [target for target in targets if "://" not in target]
    assert [target for target in inside if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_tests_that_documents_name_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    files = {path.name: path for path in (ROOT / "tests").rglob("*.py")}
    for name in re.findall(r"\b(test_\w+\.py)\b", text):
        assert name in files, f"{name_of(document)} names {name}"
    for name, function in re.findall(r"(\w+\.py)::(\w+)(?!\w|…)", text):
        assert f"def {function}(" in files[name].read_text(encoding="utf-8"), f"{name}::{function}"


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README.read_text(encoding="utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
