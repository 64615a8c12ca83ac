"""The supervisor's writer: when it writes, what it says; a full disk is said once and harms nobody."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from federation.commands.console import describe_event
from federation.status import files as status_files
from federation.status.files import METRICS, PAGE, StatusFiles
from federation.status.page_parts import REWRITE_SECONDS
from federation.status.presence import PresenceWatch
from federation.status.study_writer import StudyWriter
from federation.study import Study
from instahide.errors import FederationError, InvalidInputError

from .exposition_parser import parse
from .page_reader import PageReader
from .study_files import NOW, events_of_a_run, make_study, stamp, write_events


class Watched:
    """A study with a writer whose clock and whose knowledge of nodes the test sets."""

    def __init__(self, study: Study) -> None:
        self.study, self.said = study, list[str]()
        self.seconds, self.present = 0.0, None
        self.writer = StudyWriter(
            study,
            StatusFiles(study.path, say=self.said.append),
            presence=lambda: self.present,
            say=self.said.append,
            describe=describe_event,
            now=lambda: NOW,
            monotonic=lambda: self.seconds,
        )

    present: dict[int, str] | None

    @property
    def page(self) -> str:
        return PageReader((self.study.path / PAGE).read_text()).text

    @property
    def metrics(self) -> dict[str, Any]:
        return parse((self.study.path / METRICS).read_text())


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    study = make_study(tmp_path / "study")
    write_events(study, "old", [{"event": "run-failed", "reason": "long ago", "time": stamp(9000)}])
    return Watched(study)


def test_it_writes_at_once_then_when_something_is_new_and_when_the_page_is_old(watched: Watched) -> None:
    assert watched.writer.look()
    assert not watched.writer.look()
    write_events(watched.study, "trial-1", events_of_a_run(1))
    assert watched.writer.look()
    assert "trial-1" in watched.page
    assert not watched.writer.look()
    watched.present = {100: "online"}
    assert watched.writer.look()
    assert "1 of 3 online" in watched.page
    watched.seconds = REWRITE_SECONDS - 1
    assert not watched.writer.look()
    watched.seconds = REWRITE_SECONDS
    assert watched.writer.look()


def test_new_events_are_said_in_a_line_each_and_old_ones_are_not(watched: Watched) -> None:
    write_events(watched.study, "trial-1", events_of_a_run(2))
    watched.writer.look()
    assert "run trial-1: round 1 done with st-mary, northside, eastern · " in watched.said[1]
    assert watched.said[2].startswith("run trial-1: round 2: eastern refused: at most 1 round")
    assert not any("long ago" in line for line in watched.said)
    assert watched.said[0] == "run trial-1: waiting for sites; online: st-mary, northside, eastern"


def test_the_last_page_says_that_it_was_stopped_or_why_it_went_down(watched: Watched) -> None:
    watched.writer.look()
    watched.writer.close()
    assert "was stopped, in order" in watched.page
    assert watched.metrics["instahide_coordinator_up"][0].value == 0
    watched.writer.close("the gateway ended with status 1:")
    assert "is down (the gateway ended with status 1:)" in watched.page


def test_a_full_disk_is_said_once_and_once_more_when_there_is_room_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.writer.look()
    before = (watched.study.path / PAGE).read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(status_files, "atomic_write_text", full)
    for number in range(3):
        write_events(watched.study, f"run-{number}", events_of_a_run(1))
        assert not watched.writer.look()
    warnings = [line for line in watched.said if "cannot be written" in line]
    assert warnings == ["the status page cannot be written (No space left on device); the service goes on"]
    assert (watched.study.path / PAGE).read_bytes() == before, "the old page is whole"
    monkeypatch.undo()
    watched.seconds = REWRITE_SECONDS
    assert watched.writer.look()
    assert watched.said[-1] == "the status page is written again"


def test_a_fault_in_the_page_itself_does_not_reach_the_service(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("federation.status.study_writer.study_page", lambda _: 1 / 0)
    assert not watched.writer.look()
    assert not watched.writer.look()
    watched.writer.close()
    assert watched.said == [
        "the status page cannot be written (ZeroDivisionError: division by zero); the service goes on"
    ]


def test_others_may_read_the_files_where_the_folder_lets_them(watched: Watched) -> None:
    watched.writer.look()
    assert {(watched.study.path / name).stat().st_mode & 0o777 for name in (PAGE, METRICS)} == {0o644}


def test_pieces_of_a_killed_writer_are_cleared_and_another_folder_must_be_there(tmp_path: Path) -> None:
    piece = tmp_path / f".{PAGE}.abcd.partial"
    piece.write_text("half")
    StatusFiles(tmp_path, say=print)
    assert not piece.exists()
    with pytest.raises(InvalidInputError, match="there is no folder"):
        StatusFiles(tmp_path / "nothing", say=print)


def test_presence_is_asked_again_and_again_and_a_failure_means_unknown() -> None:
    answers: list[dict[int, str] | Exception] = [
        {1: "online"},
        FederationError("no answer", hint="wait"),
        ValueError("what the network sent is nonsense"),
        {1: "offline"},
    ]
    seen: list[object] = []
    done = threading.Event()

    def ask() -> dict[int, str]:
        seen.append(watch.latest())
        if not answers:
            done.set()
            return {}
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    watch = PresenceWatch(ask, every=0.01)
    with watch:
        assert done.wait(30.0)
    assert seen[:5] == [None, {1: "online"}, None, None, {1: "offline"}]
