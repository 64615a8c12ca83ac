"""``coordinator status`` and ``node status``: up, down, live; what is shown, and the exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from federation.cli import run
from federation.commands import coordinator
from federation.flower_processes.control import NodeRecord
from instahide.errors import RefusedError

from ..status.node_files import listening_worker, make_node, open_site_log, serve_rounds
from ..status.study_files import HOSTILE, SITES, events_of_a_run, make_study, write_events


@pytest.fixture
def study(tmp_path: Path) -> Path:
    made = make_study(tmp_path / "study")
    write_events(made, "trial-1", events_of_a_run(3))
    return made.path


CTRL_C_AT_LOOK = 3


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    class Control:
        def list_nodes(self) -> list[NodeRecord]:
            looks.append(self)
            if len(looks) == CTRL_C_AT_LOOK:
                raise KeyboardInterrupt
            return [NodeRecord(100, "st-mary", "", "online"), NodeRecord(101, "northside", "", "offline")]

    @contextmanager
    def connect(study: Path) -> Iterator[Control]:
        yield Control()

    monkeypatch.setattr(coordinator, "_control", connect)


def test_a_coordinator_that_is_down_still_shows_what_its_files_know(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["coordinator", "status", str(study)]) == 5
    output = capsys.readouterr()
    for words in ("down", "st-mary", "unknown", "trial-1", "3 of 10", "0.784 plain query", "gateway"):
        assert words in output.out, words
    assert "at most 1 round a run is allowed here" in output.out
    assert output.err.startswith("error: the coordinator is down: no coordinator is running")
    assert f"hint: start it: instahide coordinator start {study}" in output.err


def test_down_in_json_is_one_document_and_the_same_exit_code(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["coordinator", "status", str(study), "--format", "json"]) == 5
    facts = json.loads(capsys.readouterr().out)
    assert facts["coordinator"] == "down"
    assert facts["down-reason"] == f"no coordinator is running in {study}"
    assert {site["status"] for site in facts["sites"]} == {"unknown"}
    [shown] = facts["runs"]
    assert (shown["rounds"], shown["planned-rounds"], shown["state"]) == (3, 10, "interrupted")
    assert shown["accuracy"]["plain query"][-1] == [2, pytest.approx(0.784)]
    assert shown["refusals"][0]["reason"] == "at most 1 round a run is allowed here"
    assert {one["name"] for one in facts["certificates"]} == {"gateway", "superlink", "authority"}
    assert all(isinstance(one["days-left"], int) for one in facts["certificates"])


@pytest.mark.usefixtures("up")
def test_a_coordinator_that_is_up(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["coordinator", "status", str(study)]) == 0
    assert "up; 1 of 3 hospitals online" in capsys.readouterr().out


def test_another_program_in_its_place_is_a_refusal(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def connect(_: Path) -> None:
        raise RefusedError("what answers is not our SuperLink", hint="find out which program that is")

    monkeypatch.setattr(coordinator, "_control", connect)
    assert run(["coordinator", "status", str(study)]) == 3
    output = capsys.readouterr()
    assert "what answers is not our SuperLink" in output.out
    assert "hint: find out which program that is" in output.err


def test_hostile_words_are_no_markup_in_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_study(tmp_path / "study", (*SITES, "[bold red]x[/]" + HOSTILE))
    hostile = {"event": "site-refused", "round": 1, "site": HOSTILE, "reason": "\x1b[2J" + HOSTILE}
    write_events(made, "trial-1", [hostile])
    assert run(["coordinator", "status", str(made.path)]) == 5
    shown = capsys.readouterr().out
    assert "[bold red]x[/]" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown


@pytest.mark.usefixtures("up")
@pytest.mark.parametrize("output", ["text", "json"])
def test_a_watch_goes_on_until_ctrl_c_and_ends_with_0(
    study: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["coordinator", "status", str(study), "--watch", "--every", "0.2", "--format", output]
    assert run(words) == 0
    shown = capsys.readouterr().out
    if output == "json":
        documents = [json.loads(line) for line in shown.splitlines()]
        assert len(documents) == CTRL_C_AT_LOOK - 1
        assert all(document["coordinator"] == "up" for document in documents)
    else:
        assert shown.count("1 of 3 hospitals online") == CTRL_C_AT_LOOK - 1


def test_a_watch_in_a_terminal_shows_it_in_place(tmp_path: Path) -> None:
    """In a real terminal of its own (a pseudo-terminal), ended by Ctrl-C typed there."""
    node = make_node(tmp_path / "n")
    leader, follower = os.openpty()
    command = [
        sys.executable,
        "-c",
        "import sys; from federation.cli import main; main()",
        "node",
        "status",
        str(node.path),
        "--watch",
        "--every",
        "0.2",
    ]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True
    )
    os.close(follower)
    shown = b""
    while shown.count(b"site worker: ") < 3:
        shown += os.read(leader, 65_536)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    os.close(leader)
    assert b"\x1b[" in shown  # the second look is drawn over the first
    assert b"Traceback" not in shown


def test_a_node_that_listens_and_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = make_node(tmp_path / "n")
    serve_rounds(open_site_log(node), "trial-1", 2)
    with listening_worker(node):
        assert run(["node", "status", str(node.path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("site worker: listening; joined a federation: yes")
    assert "trial-1" in shown
    assert "240 encodings of own images, at most 2 of one" in shown


def test_a_node_that_is_down_still_shows_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = make_node(tmp_path / "n")
    serve_rounds(open_site_log(node), "trial-1", 2)
    assert run(["node", "status", str(node.path), "--format", "json"]) == 5
    output = capsys.readouterr()
    facts = json.loads(output.out)
    assert facts["runs"][0]["rounds"] == 2
    assert facts["exposures"] == {"own": 240, "partner": 90, "largest": 2}
    assert output.err.startswith("error: the site worker is down")
