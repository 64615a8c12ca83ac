"""The privacy ledger: what is charged stays charged, through restarts, kills and meddling."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from federation.privacy_ledger import PrivacyLedger
from instahide.errors import IntegrityError, InvalidInputError

from .test_accounting import event


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "privacy.sqlite3"


def test_charges_are_there_after_a_restart_in_their_order(path: Path) -> None:
    ledger = PrivacyLedger(path)
    charged = [event(server_round=n, run_name=f"run-{n % 2}") for n in (1, 2, 3)]
    assert [ledger.charge(one).sequence for one in charged] == [1, 2, 3]
    again = PrivacyLedger(path)
    assert list(again.events()) == charged
    assert [one.server_round for one in again.events(run_name="run-1")] == [1, 3]
    assert again.entries()[0].made_at.endswith("+00:00")


def test_nobody_else_may_read_it(path: Path) -> None:
    PrivacyLedger(path)
    assert path.stat().st_mode & 0o077 == 0


def test_a_writer_killed_right_after_charging_has_charged(path: Path) -> None:
    """SIGKILL leaves no time for anything to be tidied up."""
    script = (
        "import os, signal, sys\n"
        "from federation.accounting import PrivacyEvent\n"
        "from federation.privacy_ledger import PrivacyLedger\n"
        "ledger = PrivacyLedger(sys.argv[1])\n"
        "ledger.charge(PrivacyEvent(run_name='r', server_round=1, mechanism='dp-sgd', noise_multiplier=1.0,"
        " sample_rate=0.1, num_steps=10, num_draws=10))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(PrivacyLedger(path).events()) == 1


@pytest.mark.parametrize("statement", ["DELETE FROM events", "UPDATE events SET num_steps = 1"])
def test_the_database_itself_takes_nothing_back(path: Path, statement: str) -> None:
    PrivacyLedger(path).charge(event())
    with sqlite3.connect(path) as connection, pytest.raises(sqlite3.IntegrityError, match="append only"):
        connection.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM events WHERE sequence = 2",
        "UPDATE events SET noise_multiplier = 9.0 WHERE sequence = 1",
        "UPDATE events SET num_steps = 0 WHERE sequence = 3",
        "PRAGMA user_version = 7",
    ],
)
def test_a_ledger_that_was_edited_is_refused(path: Path, statement: str) -> None:
    ledger = PrivacyLedger(path)
    for _ in range(3):
        ledger.charge(event())
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER no_removal")
        connection.execute("DROP TRIGGER no_change")
        connection.execute(statement)
    with pytest.raises(IntegrityError, match="privacy ledger"):
        PrivacyLedger(path)
    with pytest.raises(IntegrityError, match="privacy ledger"):
        ledger.charge(event())


@pytest.mark.parametrize("content", [b"not a database at all, whatever it says" * 100, b"\x00" * 5000])
def test_a_damaged_file_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        PrivacyLedger(path)
    assert "backup" in caught.value.hint
    assert path.read_bytes() == content


def test_another_programs_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE events (x)")
    with pytest.raises(IntegrityError, match="not a privacy ledger"):
        PrivacyLedger(path)


def test_bits_that_flip_on_the_disk_are_found(path: Path) -> None:
    ledger = PrivacyLedger(path)
    for _ in range(20):
        ledger.charge(event(run_name="hospital-run"))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"hospital-run")] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError):
        ledger.events()


def test_a_folder_that_cannot_be_made_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be written"):
        PrivacyLedger(tmp_path / "file" / "privacy.sqlite3")
