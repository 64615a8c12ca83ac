"""``instahide coordinator``: options, outputs and exit codes, without any process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from federation.audit_verification import read_log
from federation.cli import run
from federation.commands import coordinator
from federation.commands.console import describe_event
from federation.config import RunConfig
from federation.flower_processes.bundle import build_bundle
from federation.flower_processes.control import NodeRecord, RunStatus
from federation.identity import create_identity
from federation.join_signatures import RequestKeys
from federation.joining import JoinRequest, read_answer, read_request, write_request
from federation.messages import RoundRequest
from federation.plan import Plan, read_plan
from federation.provisioning import create_node_key, load_node_key, public_line_of
from federation.study import load_run, load_study


class FakeControl:
    """Answers as a SuperLink would; a submitted run writes ``events`` and ends with ``status``."""

    def __init__(self) -> None:
        self.registered: dict[str, int] = {}
        self.submitted: list[dict[str, Any]] = []
        self.stopped: list[int] = []
        self.events: list[dict[str, Any]] = []
        self.status = "finished:completed"

    def register_node(self, public_key: bytes, *, name: str) -> int:
        return self.registered.setdefault(name, 100 + len(self.registered))

    def list_nodes(self) -> list[NodeRecord]:
        return [NodeRecord(node, name, "", "online") for name, node in self.registered.items()]

    def submit_run(self, bundle: object, run_config: dict[str, Any]) -> int:
        self.submitted.append(run_config)
        with (Path(run_config["run-directory"]) / "events.jsonl").open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in self.events)
        return len(self.submitted)

    def run_status(self, run_id: int) -> RunStatus:
        if self.status == "ctrl-c":
            raise KeyboardInterrupt
        return RunStatus(run_id, self.status, "")

    def stop_run(self, run_id: int) -> bool:
        self.stopped.append(run_id)
        return True


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> FakeControl:
    fake = FakeControl()

    @contextmanager
    def connect(study: Path) -> Iterator[FakeControl]:
        yield fake

    monkeypatch.setattr(coordinator, "_control", connect)
    return fake


@pytest.fixture
def study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run(["coordinator", "init", str(tmp_path / "study"), "--host", "fl.example.org"]) == 0
    capsys.readouterr()
    return tmp_path / "study"


def request_file(folder: Path, name: str, **changes: Any) -> Path:
    node = load_node_key(create_node_key(folder / name).private)
    identity = create_identity(folder / name / "identity.key")
    values: dict[str, Any] = {
        "name": name,
        "public_key": public_line_of(node),
        "identity_key": identity.public_line,
        "num_examples": 100,
        "evaluate_num_examples": 20,
        "class_names": ("benign", "malignant"),
        "image_shape": (1, 8, 8),
    }
    keys = RequestKeys(node=node, identity=identity)
    return write_request(JoinRequest(**(values | changes)), folder / f"{name}.request.json", keys=keys)


@pytest.fixture
def admitted(study: Path, control: FakeControl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run(["coordinator", "admit", str(study), str(request_file(tmp_path, "st-mary"))]) == 0
    capsys.readouterr()
    return study


def fails(capsys: pytest.CaptureFixture[str], words: list[str], code: int) -> str:
    """Run ``words``, expect ``code`` and an error with a hint on stderr, nothing on stdout; the text."""
    assert run(words) == code
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert "\nhint: " in output.err
    assert "Traceback" not in output.err
    return output.err


def test_init_tells_what_to_read_out_and_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    assert run(["coordinator", "init", str(folder), "--host", "fl.example.org", "--port", "9444"]) == 0
    text = capsys.readouterr().out
    assert "fl.example.org:9444" in text
    assert f"next: instahide coordinator start {folder}" in text


def test_init_in_json_gives_the_authoritys_fingerprint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["coordinator", "init", str(tmp_path / "s"), "--host", "fl.example.org", "--format", "json"]
    assert run(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["address"] == "fl.example.org:9443"
    assert len(bytes.fromhex(facts["authority-sha256"])) == 32


def test_a_second_init_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = fails(capsys, ["coordinator", "init", str(study), "--host", "fl.example.org"], 3)
    assert "already holds a study" in text


def test_init_without_a_host_or_with_a_wrong_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--host" in fails(capsys, ["coordinator", "init", str(tmp_path / "s")], 2)
    words = ["coordinator", "init", str(tmp_path / "s"), "--host", "https://fl.example.org"]
    assert "neither a host name nor an IP address" in fails(capsys, words, 2)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("verb", [["start"], ["status"], ["run", "--name", "x"]])
def test_a_folder_that_is_no_study_is_invalid_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    words = ["coordinator", verb[0], str(tmp_path), *verb[1:]]
    assert "is not a study folder" in fails(capsys, words, 2)


def test_a_coordinator_that_is_not_up_is_named_with_the_verb_that_starts_it(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = fails(capsys, ["coordinator", "run", str(study), "--name", "x"], 2)
    assert "no coordinator is running" in text
    assert "instahide coordinator start" in text
    assert not (study / "runs").exists()


def test_admit_registers_and_answers_beside_the_request(
    study: Path, control: FakeControl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = request_file(tmp_path, "st-mary")
    assert run(["coordinator", "admit", str(study), str(request), "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    answer = read_answer(tmp_path / "st-mary.join.json")
    assert facts == {
        "name": "st-mary",
        "node-id": 100,
        "fingerprint": answer.fingerprint,
        "identity": read_request(request).identity,
        "safety-number": read_request(request).safety_number,
        "coordinator-safety-number": answer.safety_number,
        "signed-by-known-keys": False,
        "replaced-keys": [],
        "answer": str(tmp_path / "st-mary.join.json"),
    }
    assert answer.coordinator == "fl.example.org:9443"


def test_a_hospital_that_does_not_fit_is_refused_before_its_key_is_registered(
    admitted: Path, control: FakeControl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = request_file(tmp_path, "northside", image_shape=(3, 8, 8))
    text = fails(capsys, ["coordinator", "admit", str(admitted), str(request)], 3)
    assert "northside has images of (3, 8, 8), st-mary of (1, 8, 8)" in text
    assert list(control.registered) == ["st-mary"]
    assert not (tmp_path / "northside.join.json").exists()


def test_admit_takes_a_request_only(
    study: Path, control: FakeControl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text("[]")
    assert "is not a join-request" in fails(
        capsys, ["coordinator", "admit", str(study), str(tmp_path / "x.json")], 2
    )


def test_a_run_is_submitted_shown_and_ends_with_zero(
    admitted: Path, control: FakeControl, capsys: pytest.CaptureFixture[str]
) -> None:
    control.events = [
        {"event": "round-finished", "round": 1, "sites": ["st-mary"], "incoming": {}},
        {"event": "site-missing", "round": 1, "site": "northside", "reason": "offline"},
        {"event": "evaluation-finished", "round": 1, "metrics": {"evaluate-accuracy-plain": 0.5}},
    ]
    words = ["coordinator", "run", str(admitted), "--name", "t", "--set", "model=mlp"]
    assert run([*words, "--set", "num-server-rounds=1"]) == 0
    text = capsys.readouterr().out
    assert "round 1 done with st-mary\n" in text
    assert "round 1: northside missing: offline\n" in text
    assert "last model measured: plain 0.500\n" in text
    [sent] = control.submitted
    assert RunConfig.from_run_config(sent) == load_run(load_study(admitted), "t")
    assert (sent["num-server-rounds"], sent["model"], sent["resume"]) == (1, "mlp", False)


def test_a_run_in_json_prints_one_document(
    admitted: Path, control: FakeControl, capsys: pytest.CaptureFixture[str]
) -> None:
    control.events = [{"event": "evaluation-finished", "metrics": {"evaluate-accuracy-plain": 0.5}}]
    words = ["coordinator", "run", str(admitted), "--name", "t", "--set", "model=mlp", "--format", "json"]
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out) == {
        "run": "t",
        "folder": str(admitted / "runs" / "t"),
        "metrics": {"evaluate-accuracy-plain": 0.5},
    }


@pytest.mark.parametrize(("status", "code"), [("finished:failed", 1), ("finished:stopped", 130)])
def test_a_run_that_did_not_complete_has_its_own_exit_code_and_reason(
    admitted: Path, control: FakeControl, capsys: pytest.CaptureFixture[str], status: str, code: int
) -> None:
    control.status = status
    control.events = [{"event": "run-failed", "reason": "no quorum in round 2", "hint": "wait for a site"}]
    text = fails_after_output(capsys, ["coordinator", "run", str(admitted), "--name", "t"], code)
    assert "no quorum in round 2" in text
    assert "hint: wait for a site" in text


def fails_after_output(capsys: pytest.CaptureFixture[str], words: list[str], code: int) -> str:
    assert run(words) == code
    return capsys.readouterr().err


def test_ctrl_c_stops_the_run_and_says_how_to_go_on(
    admitted: Path, control: FakeControl, capsys: pytest.CaptureFixture[str]
) -> None:
    control.status = "ctrl-c"
    text = fails_after_output(capsys, ["coordinator", "run", str(admitted), "--name", "t"], 130)
    assert control.stopped == [1]
    assert f"instahide coordinator resume {admitted} t" in text


def test_resume_keeps_the_settings_and_shows_only_what_is_new(
    admitted: Path, control: FakeControl, capsys: pytest.CaptureFixture[str]
) -> None:
    control.status, control.events = "finished:failed", [{"event": "run-failed", "reason": "the first time"}]
    words = ["coordinator", "run", str(admitted), "--name", "t", "--set", "learning-rate=0.01"]
    assert run(words) == 1
    capsys.readouterr()
    control.status, control.events = "finished:completed", [{"event": "run-resumed", "after-round": 2}]
    assert run(["coordinator", "resume", str(admitted), "t", "--set", "num-server-rounds=9"]) == 0
    output = capsys.readouterr()
    assert "resumed after round 2" in output.out
    assert "the first time" not in output.out + output.err
    again = control.submitted[-1]
    assert (again["resume"], again["learning-rate"], again["num-server-rounds"]) == (True, 0.01, 9)


def test_resume_of_an_unknown_run_names_those_there_are(
    admitted: Path, control: FakeControl, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "hint: runs: none yet" in fails(capsys, ["coordinator", "resume", str(admitted), "t"], 2)
    assert control.submitted == []


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ("learning-rate", "is not KEY=VALUE"),
        ("=5", "is not KEY=VALUE"),
        ("lerning-rate=0.1", "unknown setting 'lerning-rate'"),
        ("num-server-rounds=0", "num-server-rounds is 0"),
        ("num-server-rounds=two", "num-server-rounds is 'two'"),
        ("model=vgg-1000", "vgg-1000"),
        ("run-name=other", "run-name cannot be set"),
        ("run-directory=/elsewhere", "run-directory cannot be set"),
        ("resume=true", "resume cannot be set"),
        ('roster=["a key"]', "roster cannot be set"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_started(
    admitted: Path, control: FakeControl, capsys: pytest.CaptureFixture[str], pair: str, reason: str
) -> None:
    words = ["coordinator", "run", str(admitted), "--name", "t", "--set", pair]
    assert reason in fails(capsys, words, 2)
    assert control.submitted == []
    assert load_study(admitted).run_names() == []


def test_settings_come_from_a_file_and_single_ones_win(
    admitted: Path, control: FakeControl, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text('model = "mlp"\nlearning-rate = 0.5\n')
    words = ["coordinator", "run", str(admitted), "--name", "t", "--config", str(file)]
    assert run([*words, "--set", "learning-rate=0.25"]) == 0
    assert (control.submitted[0]["model"], control.submitted[0]["learning-rate"]) == ("mlp", 0.25)


def test_a_settings_file_that_cannot_be_read_is_named(
    admitted: Path, control: FakeControl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["coordinator", "run", str(admitted), "--name", "t", "--config", str(tmp_path / "run.toml")]
    assert "cannot read" in fails(capsys, words, 2)
    for content in (b"model: mlp", b"\xff\xfe"):
        (tmp_path / "run.toml").write_bytes(content)
        assert "is not TOML" in fails(capsys, words, 2)


def test_settings_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["coordinator", "settings", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["setting"] for row in rows} == set(RunConfig().to_mapping())
    assert all(row["meaning"] and row["default"] for row in rows)
    assert run(["coordinator", "settings"]) == 0
    assert "num-server-rounds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("events", "state", "rounds"),
    [
        ([], "not started", 0),
        (["run-started", "round-finished"], "interrupted", 1),  # nobody holds the run's folder
        (["run-started", "round-finished", "run-finished"], "finished", 1),
        (["run-started", "run-failed"], "failed", 0),
        (["run-started", "run-failed", "run-started", "run-finished"], "finished", 0),
    ],
)
def test_status_shows_hospitals_and_runs(
    admitted: Path,
    control: FakeControl,
    capsys: pytest.CaptureFixture[str],
    events: list[str],
    state: str,
    rounds: int,
) -> None:
    control.events = [{"event": event, "round": 1} for event in events]
    assert run(["coordinator", "run", str(admitted), "--name", "t", "--set", "model=mlp"]) == 0
    capsys.readouterr()
    assert run(["coordinator", "status", str(admitted), "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["address"], facts["coordinator"]) == ("fl.example.org:9443", "up")
    assert facts["sites"] == [{"name": "st-mary", "status": "online", "images": 100, "last-answer": ""}]
    assert [(one["name"], one["rounds"], one["state"]) for one in facts["runs"]] == [("t", rounds, state)]
    assert run(["coordinator", "status", str(admitted)]) == 0
    text = capsys.readouterr().out
    assert "st-mary" in text
    assert state in text


def test_status_of_an_empty_study(
    study: Path, control: FakeControl, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["coordinator", "status", str(study)]) == 0
    assert "none yet" in capsys.readouterr().out


def test_events_for_machines_are_not_shown() -> None:
    assert describe_event({"event": "checkpoint-saved", "round": 1}) is None
    session = {"event": "session-opened", "sites": ["a", "b"], "roster-sha256": "12" * 32}
    assert describe_event(session) == (
        "secure aggregation over a, b (roster 121212121212): single updates stay hidden"
    )
    assert describe_event({"event": "evaluation-finished", "metrics": {}}) == (
        "last model measured: no site answered"
    )


def test_the_plan_is_the_one_that_the_run_is_submitted_under(
    admitted: Path, control: FakeControl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exported before the run, while it is started, and for a longer run that would resume it."""
    control.events = [{"event": "run-finished", "rounds": 3}]
    words = [str(admitted), "--name", "trial", "--set", "learning-rate=1"]
    out = tmp_path / "trial.plan.json"
    assert run(["coordinator", "plan", *words, "--out", str(out), "--format", "json"]) == 0
    before = json.loads(capsys.readouterr().out)
    plan = read_plan(out)
    assert before == {"sha256": plan.sha256, "run": "trial", "file": str(out)}
    assert not (admitted / "runs").exists()
    assert run(["coordinator", "run", *words]) == 0
    assert f"plan {plan.short}: " in capsys.readouterr().out
    [submitted] = [record for record in read_log(admitted / "audit.jsonl").records if "run" in record.event]
    assert submitted.fields == {
        "run": "trial",
        "plan-sha256": plan.sha256,
        "bundle-sha256": build_bundle().sha256,
    }
    told = RoundRequest.for_round(RunConfig.from_run_config(control.submitted[0]), 1, {})
    assert Plan.of(told, bundle_sha256=build_bundle().sha256) == plan

    longer = ["--set", "num-server-rounds=9", "--out", str(out)]
    assert run(["coordinator", "plan", str(admitted), "--name", "trial", *longer]) == 0
    assert [key for key, *_ in read_plan(out).differences(plan)] == ["num-server-rounds"]
