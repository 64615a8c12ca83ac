"""The files of a run: events line by line, tables, the model, and an honest model card."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from coordinator_fakes import FakeClock, FakeGrid, honest, initial_weights, prepare
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from federation.coordinator import rounds
from federation.coordinator.events import EventLog, read_events
from federation.coordinator.outputs import COLUMNS, RunDirectory
from instahide.errors import FederationError, IntegrityError, InvalidInputError, RefusedError


@pytest.fixture
def finished(tmp_path):
    """A finished run of three rounds: its folder and its result."""
    config = prepare(tmp_path, num_server_rounds=3, class_names=("a", "b"), image_shape=(1, 4, 3))
    clock = FakeClock()
    return tmp_path, rounds.run(config, FakeGrid(clock), clock=clock)


# --- events ------------------------------------------------------------------------------------------


def test_every_event_is_one_json_line_with_a_utc_time(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("site-failed", site="Zoë", reason="line\nbreak")
    log.close()
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    event = json.loads(line)
    assert event | {"event": "site-failed", "site": "Zoë", "reason": "line\nbreak"} == event
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])


def test_a_line_torn_by_a_kill_is_cut_off_and_the_rest_kept(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "run-started"}\n{"event": "round-sta')
    assert len(read_events(path)) == 1
    log = EventLog(path)
    log.emit("run-resumed")
    log.close()
    assert [line["event"] for line in read_events(path)] == ["run-started", "run-resumed"]


def test_an_event_that_is_not_in_the_list_is_a_bug(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(AssertionError):
        log.emit("something")
    log.close()


# --- tables -------------------------------------------------------------------------------------------


def test_row_r_is_the_model_after_r_rounds(finished):
    folder, result = finished
    rows = json.loads((folder / "metrics.json").read_text())["rounds"]
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert "train-loss" not in rows[0]
    # the fakes report |mean of w| of the model they are sent as its accuracy
    first, last = initial_weights()["w"].mean(), result.weights["w"].mean()
    assert rows[0]["evaluate-accuracy-plain"] == pytest.approx(min(1.0, abs(float(first))))
    assert rows[3]["evaluate-accuracy-plain"] == pytest.approx(min(1.0, abs(float(last))))
    assert rows[3]["by-site"]["Bern"]["evaluate-num-examples"] == 20
    assert rows[1]["num-examples"] == 600


def test_the_csv_holds_the_same_rows(finished):
    folder, _ = finished
    with (folder / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    rows = json.loads((folder / "metrics.json").read_text())["rounds"]
    assert tuple(table[0]) == COLUMNS
    assert [float(row["evaluate-accuracy-plain"]) for row in table] == [
        row["evaluate-accuracy-plain"] for row in rows
    ]
    assert table[0]["train-loss"] == ""


def test_seconds_beyond_the_slowest_site_are_told_apart(finished):
    folder, _ = finished
    row = json.loads((folder / "metrics.json").read_text())["rounds"][1]
    # the fake network answers after 0.01 s, found at the first look 0.1 s later; workers say 0.008 s
    assert row["seconds"] == pytest.approx(0.1)
    assert row["overhead-seconds"] == pytest.approx(0.092)


# --- model and card -------------------------------------------------------------------------------------


def test_the_model_file_holds_the_last_weights_and_says_what_they_are(finished):
    folder, result = finished
    stored = load_file(folder / "model.safetensors")
    assert all(stored[name].tobytes() == array.tobytes() for name, array in result.weights.items())
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    assert (metadata["model"], metadata["round"], metadata["class-names"]) == ("small-cnn", "3", '["a", "b"]')


def test_the_card_says_who_contributed_and_what_is_not_protected(finished):
    folder, _ = finished
    card = (folder / "model_card.md").read_text()
    assert "| Bern | 200 | 3 of 3 |" in card
    assert "not\nencryption and is broken" in card.replace("**", "")
    assert "in the clear" in card
    assert "epsilon" not in card.lower()
    assert "ε" not in card
    assert str(folder) not in card


def test_the_card_of_a_run_on_plain_images_does_not_speak_of_encodings(tmp_path):
    config = prepare(tmp_path, num_server_rounds=1, encoding="none", evaluate=False)
    clock = FakeClock()
    rounds.run(config, FakeGrid(clock, behaviour=honest), clock=clock)
    card = (tmp_path / "model_card.md").read_text()
    assert "as they are, without encoding" in card
    assert "Not measured." in card


# --- the folder -----------------------------------------------------------------------------------------


def test_a_run_without_a_folder_is_refused(tmp_path):
    config = prepare(tmp_path)
    with pytest.raises(InvalidInputError, match="run-directory"):
        RunDirectory(replace(config, run_directory=""))
    with pytest.raises(InvalidInputError, match="no folder"):
        RunDirectory(replace(config, run_directory=str(tmp_path / "none")))


def test_one_coordinator_at_a_time(tmp_path):
    config = prepare(tmp_path)
    first = RunDirectory(config)
    with pytest.raises(RefusedError, match="process id"):
        RunDirectory(config)
    first.close()
    RunDirectory(config).close()


def test_a_run_that_fails_on_a_full_disk_says_why_it_failed_and_lets_go_of_its_folder(tmp_path, monkeypatch):
    """Nobody is there, and then the events cannot be synced either: the first of the two is the reason."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    config, clock = prepare(tmp_path), FakeClock()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FederationError, match="0 of the 2 sites"):
        rounds.run(config, FakeGrid(clock, online={}), clock=clock)
    directory = RunDirectory(config)
    with pytest.raises(OSError, match="No space left"):  # alone, it is told
        directory.close()
    monkeypatch.undo()
    RunDirectory(config).close()


def test_weights_that_are_not_finite_do_not_start_a_run(tmp_path):
    config = prepare(tmp_path)
    save_file({"w": np.array([np.nan], np.float32)}, tmp_path / "initial.safetensors")
    directory = RunDirectory(config)
    with pytest.raises(IntegrityError, match="no usable weights"):
        directory.initial_weights()
    directory.close()
