"""Leaks where somebody measured them; epsilon where noise was paid for, and never for encodings alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from federation.accounting import epsilon_of
from federation.status.audits import (
    RESULT_FILE,
    RESULT_FORMAT,
    latest_findings,
    leak_curves,
    read_findings,
)
from federation.status.privacy import RunPrivacy
from federation.status.run_progress import RunProgress

from .study_files import HOSTILE, charge, events_of_a_run, write_audit


def progress(**settings: object) -> RunProgress:
    run = RunProgress(name="trial-1")
    for event in events_of_a_run(3, **settings):
        run.take(event)
    return run


def test_results_of_numbered_rounds_make_a_curve_and_others_a_row(tmp_path: Path) -> None:
    for number, figure in ((10, 0.7), (2, 0.55)):
        write_audit(tmp_path, f"round-{number}/membership", figure)
    write_audit(tmp_path, "membership-of-the-last-model", 0.8)
    findings, unreadable = read_findings(tmp_path)
    assert unreadable == 0
    assert [(one.round, one.figure) for one in findings] == [(None, 0.8), (2, 0.55), (10, 0.7)]
    assert leak_curves(findings) == {"model-membership: auc": [(2, 0.55), (10, 0.7)]}
    [last] = latest_findings(findings)
    assert last.round == 10


def test_the_figure_shown_is_the_one_with_an_interval(tmp_path: Path) -> None:
    write_audit(tmp_path, "a", 0.7)
    [finding] = read_findings(tmp_path)[0]
    assert (finding.measure, finding.figure, finding.leaked) == ("auc", 0.7, True)
    assert finding.interval == pytest.approx((0.65, 0.75))


def test_a_run_without_an_audit_has_no_leak(tmp_path: Path) -> None:
    assert read_findings(tmp_path) == ([], 0)


def test_files_that_are_no_results_are_counted_and_words_are_one_line(tmp_path: Path) -> None:
    good = write_audit(tmp_path, "a", 0.7, verdict=HOSTILE)
    for number, text in enumerate(("", "{}", "[]", '{"format": "other"}', "[" * 50_000, "\ud7ff")):
        folder = tmp_path / "audit" / f"broken-{number}"
        folder.mkdir()
        (folder / RESULT_FILE).write_text(text)
    values = json.loads(good.read_text())
    (tmp_path / "audit" / "b").mkdir()
    (tmp_path / "audit" / "b" / RESULT_FILE).write_text(json.dumps(values | {"metrics": {}, "intervals": {}}))
    findings, unreadable = read_findings(tmp_path)
    assert unreadable == 6
    assert {(one.measure, one.figure) for one in findings} == {("auc", 0.7), ("nothing measured", None)}
    assert all(one.verdict.isprintable() for one in findings)


def test_the_format_is_the_one_attacks_write() -> None:
    source = (
        Path(__file__).parents[3] / "instahide" / "attacks" / "result_files.py"
    )  # importing it takes torch
    constants = dict(re.findall(r'^(FORMAT|RESULT_FILE) = "(.+)"$', source.read_text(), flags=re.MULTILINE))
    assert constants == {"FORMAT": RESULT_FORMAT, "RESULT_FILE": RESULT_FILE}


def test_encodings_alone_have_no_epsilon_whatever_lies_in_the_folder(tmp_path: Path) -> None:
    charge(tmp_path, 2)
    run = progress()
    run.epsilon_told["st-mary"] = 1.0
    assert RunPrivacy(tmp_path).rows(run) == []


def test_client_level_epsilon_is_the_ledgers_composed(tmp_path: Path) -> None:
    run = progress(
        differential_privacy="client", encoding="none", max_update_norm=1.0, over_norm="clip",
        noise_multiplier=5.0,
    )  # fmt: skip
    privacy = RunPrivacy(tmp_path)
    assert privacy.rows(run) == []  # nothing was charged yet
    ledger = charge(tmp_path, 3, noise_multiplier=5.0)
    [row] = privacy.rows(run)
    assert row.epsilon == pytest.approx(epsilon_of(ledger.events(), 1e-5), abs=1e-12)
    assert (row.protects, row.delta, row.problem) == ("one whole site", 1e-5, "")
    charge(tmp_path, 3, noise_multiplier=5.0)
    [more] = privacy.rows(run)
    assert more.epsilon is not None
    assert row.epsilon is not None
    assert more.epsilon > row.epsilon


def test_example_level_epsilon_is_what_each_site_told(tmp_path: Path) -> None:
    run = progress(differential_privacy="example", encoding="none")
    assert RunPrivacy(tmp_path).rows(run) == []
    run.take({"event": "site-replied", "site": "st-mary", "metrics": {"epsilon-spent": 0.5}})
    run.take({"event": "site-replied", "site": "st-mary", "metrics": {"epsilon-spent": 0.7}})
    [row] = RunPrivacy(tmp_path).rows(run)
    assert (row.whose, row.epsilon, row.protects) == ("st-mary", 0.7, "one training image")


def test_a_damaged_ledger_is_said_in_words(tmp_path: Path) -> None:
    run = progress(differential_privacy="client", encoding="none", max_update_norm=1.0, over_norm="clip")
    (tmp_path / "privacy.sqlite3").write_bytes(b"nothing of the kind" * 100)
    [row] = RunPrivacy(tmp_path).rows(run)
    assert row.epsilon is None
    assert "ledger" in row.problem
