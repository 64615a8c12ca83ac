"""Reading on in a file that grows: whole lines, once each, whatever its writer does."""

from __future__ import annotations

from pathlib import Path

from federation.line_tail import LineTail


def test_each_whole_line_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = LineTail(path)
    assert tail.read() == []
    path.write_bytes(b"one\ntwo\nthr")
    assert tail.read() == [b"one", b"two"]
    assert tail.read() == []
    with path.open("ab") as file:
        file.write(b"ee\n")
    assert tail.read() == [b"three"]


def test_a_half_line_that_is_cut_off_and_written_anew_is_read_as_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\nhal")
    tail = LineTail(path)
    assert tail.read() == [b"one"]
    path.write_bytes(b"one\nanother\n")
    assert tail.read() == [b"another"]
    assert not tail.is_new_file


def test_a_shorter_file_is_another_file_and_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\n")
    tail = LineTail(path)
    tail.read()
    path.write_bytes(b"new\n")
    assert tail.read() == [b"new"]
    assert tail.is_new_file
    assert tail.read() == []
    assert not tail.is_new_file


def test_what_was_there_before_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\nhalf")
    tail = LineTail(path, from_start=False)
    assert tail.read() == []
    with path.open("ab") as file:
        file.write(b" line\nnew\n")
    assert tail.read() == [b"half line", b"new"]
