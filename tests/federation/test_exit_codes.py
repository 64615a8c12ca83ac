"""Every example on the pages of the exit codes: the command is run, and prints those very two lines."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from federation import cli
from federation.explanations import Example, exit_codes
from instahide import errors
from instahide.training_log import TrainingLog

EXAMPLES = [(code.code, example) for code in exit_codes() for example in code.examples]
INSTAHIDE = Path(sys.executable).with_name("instahide")


def _write_pictures(folder: Path, pictures: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for index, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in the state that the examples speak of: something encoded, a study and a node, both down."""
    folder = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    for name, count in (("scans", 20), ("scans-test", 6), ("leaking/train", 5), ("leaking/test", 5)):
        for label in ("well", "ill"):
            pictures = rng.integers(0, 256, (count, 16, 16), dtype=np.uint8)
            _write_pictures(folder / name / label, pictures)
    shutil.copy(folder / "leaking/train/ill/000.png", folder / "leaking/test/ill/copy.png")
    with pytest.MonkeyPatch.context() as patched, chdir(folder):
        patched.setenv("INSTAHIDE_LEDGER", str(folder / "ledger.sqlite3"))
        for words in (
            "encode scans/ --out encoded/",
            "coordinator init study/ --host fl.example.org",
            "node init st-mary/ --name st-mary --data scans/ --test scans-test/",
        ):
            assert cli.run(words.split()) == 0
        shutil.copy("st-mary/st-mary.request.json", ".")
        shutil.copytree("encoded", "edited")
        shard = next(Path("edited").glob("*.safetensors"))
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        yield folder


def _ctrl_c_after_the_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    write = TrainingLog.record

    def write_and_press(log: TrainingLog, record: Any) -> None:
        write(log, record)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingLog, "record", write_and_press)


def _is(pattern: str, line: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), line) is not None


@pytest.mark.parametrize(("code", "example"), EXAMPLES, ids=[f"{c}: {e.command[:50]}" for c, e in EXAMPLES])
def test_the_command_prints_what_the_page_says(
    code: int,
    example: Example,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if code == 130:
        _ctrl_c_after_the_first_epoch(monkeypatch)
    capsys.readouterr()
    if ">" in example.command:  # where the output goes is a matter of the shell and of the whole process
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        command = example.command.replace("instahide", shlex.quote(str(INSTAHIDE)), 1)
        done = subprocess.run(["bash", "-c", command], cwd=here, capture_output=True, text=True, check=False)
        ended, printed = done.returncode, done.stderr
    else:
        with chdir(here):
            ended = cli.run(shlex.split(example.command)[1:])
        printed = capsys.readouterr().err
    error, hint = [line for line in printed.splitlines() if line.startswith(("error: ", "hint: "))]
    assert ended == code
    assert _is(f"error: {example.error}", error), error
    assert _is(f"hint: {example.hint}", hint), hint


def test_the_codes_are_those_of_the_program() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    raised = {kind.exit_code for kind in kinds if issubclass(kind, errors.InstaHideError)}
    assert {code.code for code in exit_codes()} == raised | {0, cli.INTERRUPTED}
    for code in exit_codes():
        assert str(code.code) in cli.EPILOG
        assert bool(code.examples) == (code.code != 0)
        assert code.todo


def test_an_example_with_other_words_would_be_found() -> None:
    assert _is("the loss became nan in epoch *", "the loss became nan in epoch 2, step 1")
    assert not _is("the loss became nan", "the loss became nan in epoch 2")
    assert not _is("a.b", "a-b")
