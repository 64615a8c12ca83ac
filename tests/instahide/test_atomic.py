"""Files are whole or not there."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from instahide.atomic import (
    atomic_folder,
    atomic_path,
    atomic_write_bytes,
    atomic_write_text,
    first_error_wins,
    nothing_left_on_error,
)


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    atomic_write_bytes(target, b"old")
    atomic_write_text(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_failed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def fail_in_the_middle() -> None:
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_middle()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_the_mode_asked_for_is_the_mode_given(tmp_path: Path) -> None:
    atomic_write_bytes(tmp_path / "secret", b"x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_writer_killed_in_the_middle_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from instahide.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.bin")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "a.bin").exists()
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]


def test_of_two_errors_the_first_is_raised_and_both_ends_are_closed() -> None:
    closed = []

    def close() -> None:
        closed.append(True)
        raise OSError("no space to close")

    with pytest.raises(ValueError, match="what went wrong"), first_error_wins(close):
        raise ValueError("what went wrong")
    with pytest.raises(OSError, match="no space to close"), first_error_wins(close):
        pass
    assert closed == [True, True]


def test_a_writer_that_fails_tells_why_where_its_piece_cannot_be_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Path, missing_ok: bool = False) -> None:
        raise OSError("unlink failed")

    def fail_in_the_middle() -> None:
        with atomic_path(tmp_path / "a.bin"):
            monkeypatch.setattr(Path, "unlink", failing)
            raise RuntimeError("what went wrong")

    with pytest.raises(RuntimeError, match="what went wrong"):
        fail_in_the_middle()


def fill_and_fail(folder: Path) -> None:
    with nothing_left_on_error(folder):
        folder.mkdir(exist_ok=True)
        (folder / "new").write_text("1")
        (folder / "inner" / "deeper").mkdir(parents=True)
        raise OSError("full")


def test_of_a_block_that_fails_nothing_is_left_but_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("before")
    for folder in (tmp_path, tmp_path / "whole"):
        with pytest.raises(OSError, match="full"):
            fill_and_fail(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    with nothing_left_on_error(tmp_path / "whole"):
        (tmp_path / "whole").mkdir()
    assert (tmp_path / "whole").exists()


def make_folder(path: Path, error: BaseException | None = None) -> None:
    with atomic_folder(path) as folder:
        (folder / "a").write_text(path.name)
        assert folder.parent == path.parent
        if error is not None:
            raise error


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        make_folder(tmp_path / name)
        assert (tmp_path / name / "a").read_text() == name
    with pytest.raises(KeyboardInterrupt):
        make_folder(tmp_path / "other", KeyboardInterrupt())
    (tmp_path / "new" / "a").write_text("kept")
    with pytest.raises(OSError, match="not empty"):
        make_folder(tmp_path / "new")
    assert (tmp_path / "new" / "a").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]
