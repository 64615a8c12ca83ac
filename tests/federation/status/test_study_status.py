"""A study's files put together: who, what, how far, until when; damaged files become notes."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

from federation.status.study_status import DOWN, UP, StudyWatch

from .study_files import HOSTILE, NOW, SITES, events_of_a_run, make_study, stamp, write_audit, write_events

PRESENT = {100: "online", 101: "offline"}


def test_a_study_with_a_run_under_way(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    folder = write_events(study, "trial-1", events_of_a_run(3))
    (folder / ".lock").write_text(str(os.getpid()))
    watch = StudyWatch(study)
    assert len(watch.read_events()) == len(events_of_a_run(3))
    status = watch.status(NOW, coordinator=UP, presence=PRESENT)
    assert [(site.name, site.status) for site in status.sites] == [
        ("st-mary", "online"),
        ("northside", "offline"),
        ("eastern", "not registered"),
    ]
    assert all(site.last_answer for site in status.sites)
    assert status.count_online() == 1
    [run] = status.runs
    assert (run.state, run.progress.last_round, run.epsilon, run.findings) == ("running", 3, [], [])
    days = {one.name: one.days_left(NOW) for one in status.certificates}
    assert days["gateway"] == 365
    assert days["authority"] is not None
    assert status.notes == []


def test_a_run_whose_server_app_was_killed_is_interrupted(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    write_events(study, "trial-1", events_of_a_run(1))
    watch = StudyWatch(study)
    watch.read_events()
    assert watch.status(NOW, coordinator=UP, presence={}).runs[0].state == "interrupted"


def test_only_what_is_new_is_read_again_and_new_runs_are_found(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    watch = StudyWatch(study)
    assert watch.read_events() == []
    write_events(study, "trial-1", events_of_a_run(1))
    assert {run for run, _ in watch.read_events()} == {"trial-1"}
    assert watch.read_events() == []
    write_events(study, "trial-2", [{"event": "run-started", "time": stamp(0)}])
    write_events(study, "trial-1", [{"event": "run-failed", "reason": "x", "time": stamp(0)}])
    assert [(run, event["event"]) for run, event in watch.read_events()] == [
        ("trial-1", "run-failed"),
        ("trial-2", "run-started"),
    ]


def test_a_coordinator_that_is_down_leaves_presence_unknown(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    status = StudyWatch(study).status(NOW, coordinator=DOWN, presence=None, down_reason="gone\nsince noon")
    assert {site.status for site in status.sites} == {"unknown"}
    assert status.count_online() is None
    assert status.down_reason == "gone since noon"


def test_damaged_files_become_notes_and_the_rest_is_shown(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    folder = write_events(study, "trial-1", events_of_a_run(1))
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n{}\n")
    write_audit(folder, "a", 0.5).write_text("{")
    (study.path / "gateway.crt").write_text("no certificate")
    (study.path / "sites.json").write_text("[{")
    watch = StudyWatch(study)
    watch.read_events()
    status = watch.status(NOW, coordinator=UP, presence={})
    assert status.sites == []
    assert status.certificates[0].ends is None
    assert any("sites.json is damaged" in note for note in status.notes)
    assert "2 lines of trial-1's events.jsonl cannot be read" in status.notes
    assert any("1 files in trial-1's audit folder" in note for note in status.notes)
    assert status.runs[0].progress.last_round == 1


def test_a_certificate_near_its_end_and_one_that_has_ended(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", days=10)
    later = NOW + timedelta(days=12)
    status = StudyWatch(study).status(later, coordinator=UP, presence={})
    days = {one.name: one.days_left(later) for one in status.certificates}
    assert days["gateway"] == -2
    assert StudyWatch(study).status(NOW, coordinator=UP, presence={}).certificates[0].days_left(NOW) == 10


def test_it_is_plain_json_whatever_the_names(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", (*SITES, HOSTILE))
    folder = write_events(study, "trial-1", events_of_a_run(2, sites=(*SITES, HOSTILE)))
    write_audit(folder, "round-1/a", 0.6, verdict=HOSTILE)
    watch = StudyWatch(study)
    watch.read_events()
    values = watch.status(NOW, coordinator=UP, presence=PRESENT).to_mapping()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["runs"][0]["leak"] == {"model-membership: auc": [[1, 0.6]]}
    assert "epsilon" not in json.dumps(values)
