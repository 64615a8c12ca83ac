"""``instahide node plan``: what a hospital reads, decides and keeps, without any process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.audit_verification import read_log
from federation.cli import run
from federation.config import RunConfig, TrainingSettings, describe_settings
from federation.plan import Plan, write_plan
from federation.site.plans import PlanBook


def plan(name: str = "trial", **settings: Any) -> Plan:
    config = RunConfig.from_mapping({"run-name": name, "class-names": ["0", "1"], **settings})
    return Plan.of(config, bundle_sha256="ab" * 32)


@pytest.fixture
def node(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "scans.npz", x=images, y=np.arange(60) % 2)
    words = ["node", "init", str(tmp_path / "north"), "--name", "north", "--data"]
    assert run([*words, str(tmp_path / "scans.npz")]) == 0
    (tmp_path / "north" / "state").mkdir()
    capsys.readouterr()
    return tmp_path / "north"


def book(node: Path) -> PlanBook:
    return PlanBook(node / "state")


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(["node", "plan", *map(str, words)]) == 0
    return capsys.readouterr().out


def told(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    return json.loads(said(capsys, *words, "--format", "json"))


def fails(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    assert run(["node", "plan", *map(str, words)]) == code
    text = capsys.readouterr().err
    assert "\nhint: " in text
    assert "Traceback" not in text
    return text


def test_a_node_that_has_seen_no_plan_says_so(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "list", node) == "no plan has been seen yet\n"
    assert told(capsys, "list", node) == []
    assert "no plan waits" in fails(capsys, 2, "show", node)


def test_what_waits_is_listed_shown_approved_and_recorded(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book(node).add(plan())
    [row] = told(capsys, "list", node)
    assert (row["sha256"], row["run"], row["status"]) == (plan().sha256, "trial", "pending")
    assert plan().short in said(capsys, "list", node)
    shown = said(capsys, "show", node)
    for key, *_, meaning in describe_settings(TrainingSettings):
        assert key in shown
        assert meaning.split()[0] in shown
    assert plan().sha256 in shown
    assert told(capsys, "show", node)["plan"] == plan().to_mapping()

    assert said(capsys, "approve", node, "--by", "Dr. No") == (
        f"plan {plan().short} of run trial: approved by Dr. No\n"
    )
    assert book(node).check(plan())
    record = read_log(node / "state" / "audit.jsonl").records[-1]
    assert record.event == "plan-approved"
    assert record.fields == {"plan-sha256": plan().sha256, "run": "trial", "by": "Dr. No"}


def test_an_approval_is_taken_back_and_that_is_recorded(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book(node).add(plan())
    said(capsys, "approve", node)
    row = told(capsys, "reject", node, plan().short)
    assert row["status"] == "rejected"
    assert row["by"]
    kinds = [record.event for record in read_log(node / "state" / "audit.jsonl").records]
    assert kinds == ["log-created", "plan-approved", "plan-rejected"]


def test_a_plan_is_compared_with_the_one_approved_last(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book(node).add(plan())
    assert "no other plan was approved yet" in fails(capsys, 2, "diff", node)
    said(capsys, "approve", node)
    changed = plan("trial-2", **{"local-epochs": 7, "learning-rate": 0.5})
    book(node).add(changed)
    assert told(capsys, "diff", node) == {
        "approved": plan().sha256,
        "plan": changed.sha256,
        "changed": {
            "run-name": {"approved": "trial", "plan": "trial-2"},
            "local-epochs": {"approved": 1, "plan": 7},
            "learning-rate": {"approved": 0.05, "plan": 0.5},
        },
    }
    text = said(capsys, "diff", node)
    assert "local-epochs" in text
    assert "momentum" not in text


def test_a_plan_from_a_file_is_approved_before_any_request(
    node: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On a node whose worker never ran: the state folder and the log are made."""
    (node / "state").rmdir()
    file = write_plan(plan(), tmp_path / "trial.plan.json")
    assert "not 'ffff'" in fails(capsys, 2, "approve", node, "ffff", "--file", file)
    said(capsys, "approve", node, plan().short, "--file", file)
    assert book(node).check(plan())
    assert (node / "state").stat().st_mode & 0o777 == 0o700


def test_a_plan_is_read_and_compared_from_its_file_before_any_request(
    node: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = write_plan(plan(), tmp_path / "trial.plan.json")
    assert plan().sha256 in said(capsys, "show", node, "--file", file)
    assert told(capsys, "show", node, "--file", file)["status"] == "pending"
    assert book(node).entries() == []  # reading decides nothing and writes nothing
    assert f"plan show {node} --file {file}" in fails(capsys, 2, "diff", node, "--file", file)
    said(capsys, "approve", node, "--file", file)
    assert told(capsys, "show", node, "--file", file)["status"] == "approved"
    longer = write_plan(plan(**{"local-epochs": 7}), tmp_path / "longer.plan.json")
    assert list(told(capsys, "diff", node, "--file", longer)["changed"]) == ["local-epochs"]


def test_times_are_listed_to_the_second(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book(node).add(plan())
    [entry] = told(capsys, "list", node)
    assert entry["seen"][:19].replace("T", " ") in said(capsys, "list", node)
    assert entry["seen"] not in said(capsys, "list", node)


def test_an_edited_file_is_not_approved(
    node: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = write_plan(plan(), tmp_path / "trial.plan.json")
    file.write_text(file.read_text().replace('"local-epochs": 1', '"local-epochs": 2'))
    assert "does not have the hash" in fails(capsys, 4, "approve", node, "--file", file)
    assert book(node).entries() == []


def test_where_the_log_cannot_be_written_nothing_is_approved(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book(node).add(plan())
    (node / "state" / "audit.jsonl").write_text("no log\n")
    fails(capsys, 4, "approve", node)
    assert book(node).entries()[0].status == "pending"


def test_what_a_coordinator_wrote_is_shown_as_it_is(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book(node).add(plan(**{"class-names": ["[red]benign[/red]", "\x1b[31mmalignant"]}))
    shown = said(capsys, "show", node)
    assert "[red]benign[/red]" in shown
    assert "\x1b[31mmalignant" not in shown


def test_a_folder_without_a_node_is_invalid_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("list", "show", "diff", "approve", "reject"):
        assert "holds no node" in fails(capsys, 2, verb, tmp_path)
