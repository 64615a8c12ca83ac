"""The worker's door: who may open it, and what becomes of a dead worker's socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from federation.site.listener import MAX_SOCKET_PATH_BYTES, Listener, check_socket_path, peer_uid
from instahide.errors import InvalidInputError, RefusedError

ME = os.getuid()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "w.sock"


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(5)
    connection.connect(str(path))
    return connection


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_socket_and_folder_are_closed_to_other_users(path: Path) -> None:
    with Listener(path, allowed_uids=[ME]):
        assert (mode(path.parent), mode(path)) == (0o700, 0o600)


def test_with_a_group_the_group_reaches_the_socket_and_nobody_else(path: Path) -> None:
    with Listener(path, allowed_uids=[ME], group=os.getgid()):
        assert (mode(path.parent), mode(path)) == (0o750, 0o660)


def test_an_allowed_user_is_let_in(path: Path) -> None:
    with Listener(path, allowed_uids=[ME]) as listener, connect(path):
        accepted = listener.accept(timeout=5)
        assert accepted is not None
        with accepted:
            assert peer_uid(accepted) == ME


def test_a_user_who_is_not_listed_is_shut_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Listener(path, allowed_uids=[ME + 1]) as listener, connect(path) as stranger:
        assert listener.accept(timeout=5) is None
        assert stranger.recv(1) == b""
    assert f"user id {ME}" in caplog.text
    assert str(path) not in caplog.text


def test_nobody_at_the_door_is_no_error(path: Path) -> None:
    with Listener(path, allowed_uids=[ME]) as listener:
        assert listener.accept(timeout=0.01) is None


def test_closing_removes_the_socket(path: Path) -> None:
    with Listener(path, allowed_uids=[ME]):
        assert path.is_socket()
    assert not path.exists()


def test_a_dead_workers_socket_is_replaced(path: Path) -> None:
    program = (
        "import os, sys, pathlib; from federation.site.listener import Listener; "
        "Listener(pathlib.Path(sys.argv[1]), allowed_uids=[]); os.kill(os.getpid(), 9)"
    )
    died = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert died.returncode == -9
    assert path.is_socket()
    with Listener(path, allowed_uids=[ME]) as listener, connect(path):
        accepted = listener.accept(timeout=5)
        assert accepted is not None
        accepted.close()


def test_a_living_workers_socket_is_left_alone(path: Path) -> None:
    with Listener(path, allowed_uids=[ME]) as listener:
        with pytest.raises(RefusedError, match="another site worker"):
            Listener(path, allowed_uids=[ME])
        with connect(path):
            accepted = listener.accept(timeout=5)
            assert accepted is not None
            accepted.close()


def test_a_file_in_the_way_is_not_deleted(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_text("precious")
    with pytest.raises(InvalidInputError, match="taken by a file"):
        Listener(path, allowed_uids=[ME])
    assert path.read_text() == "precious"
    path.unlink()
    Listener(path, allowed_uids=[ME]).close()  # the failed attempt holds no lock


def test_a_folder_open_to_others_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    path.parent.chmod(0o755)
    with pytest.raises(RefusedError, match="mode 0755"):
        Listener(path, allowed_uids=[ME])


def test_the_longest_path_the_system_takes_is_taken_and_one_more_is_not(tmp_path: Path) -> None:
    room = MAX_SOCKET_PATH_BYTES - len(os.fsencode(tmp_path)) - len("/r/")
    longest = tmp_path / "r" / ("x" * room)
    check_socket_path(longest)
    Listener(longest, allowed_uids=[ME]).close()
    with pytest.raises(InvalidInputError, match="107"):
        Listener(tmp_path / "r" / ("x" * (room + 1)), allowed_uids=[ME])
