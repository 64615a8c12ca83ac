"""The audit log: what was appended stays, in order, and any change to it shows."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.audit_log import AuditLog, SignedHead, parse_line
from federation.audit_verification import read_log
from federation.identity import Identity, create_identity, load_identity
from instahide.errors import IntegrityError, InvalidInputError
from tests.federation.audit_logs import open_log


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return open_log(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def fill(log: AuditLog, count: int = 5) -> None:
    for number in range(count):
        log.append("update-sent", round=number, run="trial")


def hash_by_hand(line: bytes) -> str:
    """The chain's rule, in other words than the module's."""
    table = json.loads(line)
    del table["hash"]
    text = "{" + ",".join(f"{json.dumps(key)}:{flat(table[key])}" for key in sorted(table)) + "}"
    return hashlib.sha256(text.encode()).hexdigest()


def flat(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{flat(value[key])}" for key in sorted(value)) + "}"
    return json.dumps(value)


def test_every_line_holds_the_hash_of_the_one_before_it(log: AuditLog, path: Path) -> None:
    fill(log)
    previous = "0" * 64
    lines = path.read_bytes().splitlines()
    assert len(lines) == 6
    for number, line in enumerate(lines, 1):
        table = json.loads(line)
        assert (table["sequence"], table["previous"]) == (number, previous)
        assert table["hash"] == hash_by_hand(line)
        previous = table["hash"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_first_record_names_the_owner_and_its_hash_names_the_log(log: AuditLog, path: Path) -> None:
    read = read_log(path)
    assert (read.owner["role"], read.owner["name"]) == ("site", "north")
    assert read.public_key == load_identity(path.parent / "identity.key").public_line
    assert read.log_id == log.log_id == read.records[0].hash
    assert read.problems == ()


def test_a_log_that_is_opened_again_goes_on(log: AuditLog, path: Path, tmp_path: Path) -> None:
    fill(log)
    assert open_log(tmp_path).append("started").sequence == 7
    assert read_log(path).problems == ()


def test_another_key_does_not_go_on_with_a_log(log: AuditLog, path: Path, tmp_path: Path) -> None:
    stranger = create_identity(tmp_path / "other.key")
    with pytest.raises(IntegrityError, match="another identity key"):
        AuditLog(path, stranger, role="site", name="north")


def append_many(folder: str) -> None:
    log = open_log(Path(folder))
    for number in range(40):
        log.append("update-sent", round=number, process=os.getpid())


def test_several_processes_append_to_one_log(log: AuditLog, path: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=append_many, args=(str(tmp_path),)) for _ in range(2)]
    for process in processes:
        process.start()
    fill(log, 40)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    read = read_log(path)
    assert read.problems == ()
    assert len(read.records) == 121


def test_time_does_not_run_backwards_and_a_clock_that_did_is_told(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 12, tzinfo=UTC)
    times = iter([now, now + timedelta(hours=1), now - timedelta(hours=1), now + timedelta(hours=2)])
    log = open_log(tmp_path, now=lambda: next(times))
    records = [log.append("started") for _ in range(3)]
    assert [record.time[11:13] for record in records] == ["13", "13", "14"]
    assert [record.fields for record in records] == [{}, {"clock": "2026-01-02T11:00:00.000000Z"}, {}]
    assert read_log(tmp_path / "audit.jsonl").problems == ()


@pytest.mark.parametrize("fields", [{"x": float("nan")}, {"x": b"bytes"}, {"x": "a" * 70_000}])
def test_what_is_no_plain_short_json_is_not_appended(
    log: AuditLog, path: Path, fields: dict[str, Any]
) -> None:
    before = path.read_bytes()
    with pytest.raises(InvalidInputError):
        log.append("update-sent", **fields)
    assert path.read_bytes() == before


def test_a_log_shortened_under_a_running_process_stops_it(log: AuditLog, path: Path) -> None:
    fill(log)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(IntegrityError, match="shortened"):
        log.append("update-sent")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        log.append("update-sent")


def test_a_log_whose_last_record_was_edited_is_not_gone_on_with(
    log: AuditLog, path: Path, tmp_path: Path
) -> None:
    fill(log)
    path.write_bytes(path.read_bytes().replace(b'"round":4', b'"round":9'))
    with pytest.raises(IntegrityError, match="was edited"):
        open_log(tmp_path).append("started")


def test_a_record_that_cannot_be_written_tells_why_where_the_file_cannot_be_closed_either(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network's disk, where close() fails, too."""
    close = os.close

    def failing(descriptor: int) -> None:
        close(descriptor)
        raise OSError("Input/output error")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as faulty:
        faulty.setattr(os, "close", failing)
        faulty.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            log.append("update-sent", round=1)


# --- torn lines --------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 2, 40, 200])
def test_a_torn_line_is_reported_kept_and_owned_up_to(
    log: AuditLog, path: Path, tmp_path: Path, lost: int
) -> None:
    """``lost`` = 1 takes the line's end only: the record is there in full and still counts as torn."""
    fill(log)
    path.write_bytes(path.read_bytes()[:-lost])
    torn = path.read_bytes().rpartition(b"\n")[2]
    assert "half written" in read_log(path).problems[-1]
    record = open_log(tmp_path).append("started")
    assert record.sequence == 7  # five whole ones, torn, started
    read = read_log(path)
    assert (read.problems, read.torn_lines) == ((), 1)
    assert torn in path.read_bytes()
    told = read.records[-2]
    assert told.event == "torn"
    assert told.fields["fragments"] == [{"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}]


def test_a_crash_while_owning_up_is_owned_up_to_as_well(log: AuditLog, path: Path, tmp_path: Path) -> None:
    fill(log)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1, len(whole) + 500, 37):
        path.write_bytes(whole[:-5])
        open_log(tmp_path).append("started")
        path.write_bytes(path.read_bytes()[:cut])
        open_log(tmp_path).append("started")
        read = read_log(path)
        assert read.problems == ()
        assert read.torn_lines >= 1


def test_a_torn_record_cannot_hide_a_line_of_its_choice(log: AuditLog, path: Path) -> None:
    fill(log)
    log.append("torn", fragments=[{"bytes": 10, "sha256": "ab" * 32}])
    assert "not the ones before it" in read_log(path).problems[0]


# --- what verification finds -------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    fill(open_log(folder), 6)
    return (folder / "audit.jsonl").read_bytes()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_found(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """No key is needed to find it; only rewriting all that follows, or cutting the tail, gets through."""
    place = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    path = tmp_path / "audit.jsonl"
    path.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
    assert read_log(path).problems


def test_a_record_in_another_form_of_json_is_found(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for old, new in ((b'"round":2', b'"round": 2'), (b'"round":2', b'"round":9,"round":2')):
        path.write_bytes(whole.replace(old, new))
        assert "not in the one form" in read_log(path).problems[0]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_lines_taken_out_swapped_or_doubled_are_found(
    whole: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    lines = whole.splitlines(keepends=True)
    first, second = sorted(data.draw(st.lists(st.integers(0, 6), min_size=2, max_size=2, unique=True)))
    how = data.draw(st.sampled_from(["taken out", "swapped", "doubled"]))
    if how == "taken out":
        changed = lines[:first] + lines[first + 1 :]
    elif how == "swapped":
        changed = [*lines]
        changed[first], changed[second] = lines[second], lines[first]
    else:
        changed = lines[: second + 1] + lines[first:]
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"".join(changed))
    assert read_log(path).problems


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(junk=st.binary(max_size=200))
def test_what_is_no_log_has_problems_and_raises_nothing(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(junk)
    assert read_log(path).problems


@pytest.mark.parametrize(
    "line",
    [
        b"1",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"sequence":1.0,"time":"2026-01-02T11:00:00.000000Z","event":"e","fields":{},"previous":"","hash":""}',
        b'{"sequence":1,"time":"2026-01-02T11:00:00.000000Z","event":"e","fields":{"x":NaN},"previous":"","hash":""}',
        b'{"sequence":1,"time":"yesterday","event":"e","fields":{},"previous":"","hash":""}',
    ],
    ids=range(7),
)
def test_what_has_not_the_form_of_a_record_is_none(line: bytes) -> None:
    assert parse_line(line) is None


def test_a_file_that_is_not_there_is_invalid_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_log(tmp_path / "none")


def test_a_head_travels_as_text(log: AuditLog, path: Path) -> None:
    head = log.sign(log.append("started"))
    assert SignedHead.from_text(head.to_text()) == head
    identity = load_identity(path.parent / "identity.key")
    assert head.is_by(identity.public_line)
    assert not head.is_by(Identity(create_identity(path.parent / "x.key").private_key).public_line)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=300))
def test_any_other_text_is_no_head(text: str) -> None:
    with pytest.raises(InvalidInputError):
        SignedHead.from_text(text)
