"""A site's own view: runs, refusals, exposures, epsilon, connection; as JSON, page, metrics and lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from federation.accounting import epsilon_of
from federation.audit_log import AuditLog
from federation.node_folder import NodeFolder
from federation.status.connection import (
    CONNECTED,
    CONNECTING,
    DOWN,
    RETRYING,
    UNKNOWN,
    Connection,
    read_connection,
    write_connection,
)
from federation.status.files import METRICS, PAGE, StatusFiles
from federation.status.node_metrics import node_metrics
from federation.status.node_page import node_page
from federation.status.node_status import PRIVACY_SECONDS, NodeStatus, NodeWatch
from federation.status.node_writer import NodeWriter
from federation.status.page_parts import REWRITE_SECONDS

from .exposition_parser import parse
from .node_files import charge, listening_worker, make_node, open_site_log, serve_rounds
from .page_reader import PageReader, is_harmless
from .study_files import HOSTILE, NOW


@pytest.fixture
def folder(tmp_path: Path) -> NodeFolder:
    return make_node(tmp_path / "n")


@pytest.fixture
def log(folder: NodeFolder) -> AuditLog:
    return open_site_log(folder)


def look(folder: NodeFolder) -> NodeStatus:
    return NodeWatch(folder).status(NOW, connection=Connection(state=CONNECTED, since="2026-11-26T08:00:00Z"))


def test_runs_refusals_and_exposures_come_from_the_audit_log(folder: NodeFolder, log: AuditLog) -> None:
    serve_rounds(log, "trial-1", 3)
    log.append("measurement-sent", kind="evaluate", run="trial-1", round=3)
    refused = {"kind": "train", "run": "trial-2", "round": 1}
    log.append("request-refused", **refused, refusal="policy", reason="at most 20 runs")
    log.append("request-refused", **refused, refusal="error")
    log.append("request-abandoned", **refused)
    with listening_worker(folder):
        status = look(folder)
    run = status.records.runs["trial-1"]
    assert (run.rounds, run.measurements, run.last_round) == (3, 1, 3)
    assert status.records.refusals == {"policy": 1, "error": 1}
    assert status.records.exposures == {"own": 360, "partner": 90, "largest": 3}
    assert (status.worker, status.joined, status.coordinator) == ("listening", True, "fl.example.org:9443")
    page = PageReader(node_page(status))
    for words in (
        "This node serves the coordinator at fl.example.org:9443 .",
        "trial-1 3 1 3",
        "refused (policy) at most 20 runs",
        "refused (error) an error here: the worker's log says which",
        "encodings of the image encoded most often 3",
    ):
        assert words in page.text, words
    assert page.refresh == "30"
    values = parse(node_metrics(status))
    assert values["instahide_node_connected"][0].value == 1
    assert values["instahide_node_updates_total"][0].value == 3
    assert {dict(sample.labels)["role"]: sample.value for sample in values["instahide_node_exposures"]} == {
        "own": 360,
        "partner": 90,
    }
    assert values["instahide_node_exposures_of_one_image"][0].value == 3
    assert all(("node", "st-mary") in sample.labels for samples in values.values() for sample in samples)
    assert json.loads(json.dumps(status.to_mapping())) == status.to_mapping()


def test_a_node_that_is_down_shows_what_its_files_know(folder: NodeFolder, log: AuditLog) -> None:
    serve_rounds(log, "trial-1", 1)
    status = NodeWatch(folder).status(NOW)
    assert (status.worker, status.connection.state) == ("down", UNKNOWN)
    assert status.records.updates_sent == 1
    assert "The site worker is down" in PageReader(node_page(status)).text
    assert parse(node_metrics(status))["instahide_node_worker_up"][0].value == 0


def test_a_worker_whose_relay_is_another_service_is_no_fault(folder: NodeFolder) -> None:
    with listening_worker(folder):
        status = NodeWatch(folder).status(NOW)
    text = PageReader(node_page(status)).text
    assert "Whether its relay is connected, the relay's own log says." in text


def test_hostile_words_of_a_coordinator_stay_words(folder: NodeFolder, log: AuditLog) -> None:
    asked = {"kind": "train", "run": HOSTILE, "round": 1}
    log.append("request-refused", **asked, refusal="policy", reason=HOSTILE)
    log.append("measurement-sent", **asked)
    status = NodeWatch(folder).status(NOW, connection=Connection(state=RETRYING, reason=HOSTILE))
    assert is_harmless(node_page(status))
    assert "<script>" in PageReader(node_page(status)).text
    parse(node_metrics(status))


def test_epsilon_is_shown_only_where_it_was_charged(folder: NodeFolder, log: AuditLog) -> None:
    serve_rounds(log, "trial-1", 1)
    seconds = 0.0
    watch = NodeWatch(folder, monotonic=lambda: seconds)
    status = watch.status(NOW)
    assert "epsilon" not in node_page(status) + node_metrics(status) + json.dumps(status.to_mapping())
    ledger = charge(folder)
    status = watch.status(NOW)
    spent = epsilon_of(ledger.events(), 1e-5)
    assert status.privacy is not None
    assert status.privacy["epsilon-spent"] == pytest.approx(spent, abs=1e-12)
    assert f"trial-1 {spent:.3g}" in PageReader(node_page(status)).text
    [sample] = parse(node_metrics(status))["instahide_node_epsilon"]
    assert sample.value == pytest.approx(spent, abs=1e-12)
    charge(folder)
    assert watch.status(NOW).privacy == status.privacy  # not worked out at every look
    seconds = PRIVACY_SECONDS
    later = watch.status(NOW).privacy
    assert later is not None
    assert later["epsilon-spent"] > spent


def test_damaged_files_become_notes(folder: NodeFolder) -> None:
    folder.node_config.write_text("name = ")
    folder.ready_file.write_text("[")
    (folder.state / "privacy.sqlite3").write_bytes(b"damaged" * 500)
    (folder.state / "audit.jsonl").write_bytes(b"\xff\n{}\n")
    folder.authority.write_text("no certificate")
    status = NodeWatch(folder).status(NOW)
    assert len(status.notes) == 2
    assert (status.ready, status.authority_ends, status.records.num_records) == ({}, None, 0)
    assert is_harmless(node_page(status))


def test_the_connection_is_known_while_its_writer_lives(folder: NodeFolder) -> None:
    assert read_connection(folder.state).state == UNKNOWN
    write_connection(folder.state, CONNECTED, NOW)
    assert read_connection(folder.state) == Connection(state=CONNECTED, since="2026-11-26T09:00:00Z")
    program = (
        "import datetime, pathlib, sys; from federation.status.connection import write_connection as write;"
        "write(pathlib.Path(sys.argv[1]), 'connected', datetime.datetime.now(datetime.UTC))"
    )
    subprocess.run([sys.executable, "-c", program, str(folder.state)], check=True)
    gone = read_connection(folder.state)
    assert (gone.state, gone.reason) == (DOWN, "`instahide node start` was killed")
    table = json.loads((folder.state / "service.json").read_text())
    table["pid"] = os.getpid()  # another process that got its number
    (folder.state / "service.json").write_text(json.dumps(table))
    assert read_connection(folder.state).state == DOWN
    for text in ("[]", "{}", "{", '{"state": 1}'):
        (folder.state / "service.json").write_text(text)
        assert read_connection(folder.state).reason == "service.json cannot be read"


class Watched:
    def __init__(self, folder: NodeFolder) -> None:
        self.folder, self.said, self.seconds = folder, list[str](), 0.0
        files = StatusFiles(folder.state, say=self.said.append)
        self.writer = NodeWriter(
            folder, files, say=self.said.append, now=lambda: NOW, monotonic=lambda: self.seconds
        )

    @property
    def page(self) -> str:
        return PageReader((self.folder.state / PAGE).read_text()).text


def test_the_writer_says_each_answer_and_writes_when_something_is_new(
    folder: NodeFolder, log: AuditLog
) -> None:
    serve_rounds(log, "old", 1)
    watched = Watched(folder)
    assert read_connection(folder.state).state == CONNECTING
    assert watched.writer.look(frozenset())
    assert watched.said == []
    assert not watched.writer.look(frozenset())
    serve_rounds(log, "trial-1", 1)
    log.append("request-refused", kind="train", run="trial-1", round=2, refusal="budget", reason="spent")
    assert watched.writer.look(frozenset())
    assert watched.said == [
        "run trial-1, round 1: update sent",
        "run trial-1, round 2: refused (budget): spent",
    ]
    assert watched.writer.look(frozenset({"0" * 64}))
    watched.writer.connection(RETRYING, "nothing answers")
    assert watched.writer.look(frozenset({"0" * 64}))
    assert read_connection(folder.state).reason == "nothing answers"
    watched.seconds = REWRITE_SECONDS
    assert watched.writer.look(frozenset({"0" * 64}))
    watched.writer.close()
    assert read_connection(folder.state).reason == "stopped, in order"
    assert "The site worker is down" in watched.page
    parse((folder.state / METRICS).read_text())


def test_a_folder_that_cannot_be_written_is_said_once_and_serving_goes_on(
    folder: NodeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("federation.status.connection.atomic_write_text", full)
    monkeypatch.setattr("federation.status.files.atomic_write_text", full)
    for number in range(3):
        watched.writer.connection(RETRYING, str(number))
        watched.writer.look(frozenset())
    assert len(watched.said) == 2
    assert all("No space left on device" in line and "goes on" in line for line in watched.said)


def test_how_long_the_authority_lasts_is_on_the_page(folder: NodeFolder) -> None:
    status = look(folder)
    assert status.authority_ends is not None
    near = NodeWatch(folder).status(status.authority_ends - timedelta(days=3))
    assert "3 days left" in PageReader(node_page(near)).text
