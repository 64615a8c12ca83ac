"""The README's third and fourth use, typed as a new user would: real commands, real processes, TLS.

One start-up serves all tests of this file (module fixture); they may run in any order.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from safetensors.numpy import load_file

import federation
from federation.config import RunConfig
from federation.flower_processes.bundle import (
    Bundle,
    app_description,
    build_bundle,
    bundle_from_files,
    bundled_files,
)
from federation.flower_processes.control import ControlClient
from federation.flower_processes.superlink import CoordinatorFolder, find_superlink
from federation.study import load_study, prepare_run
from instahide.errors import InvalidInputError, RefusedError

from .command_line import instahide, until, window
from .status.exposition_parser import parse
from .status.page_reader import PageReader
from .study_in_windows import StudyInWindows, allow, study_in_windows

pytestmark = [pytest.mark.federated, pytest.mark.timeout(280)]

MODES = ("plain", "one-view", "ten-views")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyInWindows]:
    with study_in_windows(tmp_path_factory.mktemp("windows"), approving=True) as opened:
        yield opened
        # Ctrl-C in the hospitals' windows, SIGTERM for the coordinator: all end in order, with nothing left.
        for hospital in opened.hospitals.values():
            assert hospital.press_ctrl_c() == (0, []), hospital.text
            assert hospital.text.endswith("stopped\n")
        assert opened.coordinator.terminate() == (0, []), opened.coordinator.text
        assert opened.coordinator.text.endswith("stopped\n")
        assert "was stopped, in order" in (opened.study / "status.html").read_text()
        assert not (opened.study / "instance.json").exists()


@pytest.fixture(scope="module")
def finished(study: StudyInWindows) -> tuple[Path, str]:
    """The folder of a run of two rounds, and what its command printed."""
    study.approve("trial-1", "num-server-rounds=2")
    output = instahide(*study.run("trial-1", "num-server-rounds=2"))
    return study.run_folder("trial-1"), output


def test_the_run_is_followed_round_by_round(finished: tuple[Path, str]) -> None:
    folder, output = finished
    lines = output.splitlines()
    assert [line.split(" with ")[0] for line in lines[-4:-2]] == ["round 1 done", "round 2 done"]
    assert "northside, st-mary" in lines[-4] or "st-mary, northside" in lines[-4]
    assert lines[-2].startswith("last model measured: plain ")
    assert lines[-1] == f"done: model, card, metrics and events are in {folder}"


def test_the_model_is_a_new_one_of_the_same_form(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    initial, trained = (load_file(folder / f"{name}.safetensors") for name in ("initial", "model"))
    assert {name: array.shape for name, array in trained.items()} == {
        name: array.shape for name, array in initial.items()
    }
    assert any((trained[name] != initial[name]).any() for name in initial)


def test_the_tables_hold_every_round_in_three_inference_modes(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    assert [(row["sites"], row["num-examples"]) for row in rows[1:]] == [("2", "240")] * 2
    for row in rows:
        assert row["evaluate-num-examples"] == "120"
        assert all(0.0 <= float(row[f"evaluate-accuracy-{mode}"]) <= 1.0 for mode in MODES)
    assert len(json.loads((folder / "metrics.json").read_text())["rounds"]) == 3


def test_the_events_tell_the_whole_story(study: StudyInWindows, finished: tuple[Path, str]) -> None:
    kinds = [event["event"] for event in study.events("trial-1")]
    assert kinds[0] == "run-started"
    assert kinds[-1] == "run-finished"
    assert [kind for kind in kinds if kind.startswith("round-")] == ["round-started", "round-finished"] * 2
    replies = study.events("trial-1", "site-replied")
    assert sorted({event["site"] for event in replies}) == ["northside", "st-mary"]
    assert not study.events("trial-1", "site-refused", "site-failed", "site-rejected", "run-failed")


def test_the_model_card_names_sites_figures_and_limits(finished: tuple[Path, str]) -> None:
    card = (finished[0] / "model_card.md").read_text()
    assert "`small-cnn` after 2 rounds" in card
    assert "| st-mary | 120 | 2 of 2 |" in card
    assert "| northside | 120 | 2 of 2 |" in card
    assert "is broken" in card
    assert "epsilon" not in card


@pytest.mark.usefixtures("finished")
def test_status_shows_the_hospitals_and_the_finished_run(study: StudyInWindows) -> None:
    status = study.status()
    assert {(site["name"], site["status"], site["images"]) for site in status["sites"]} == {
        ("st-mary", "online", 120),
        ("northside", "online", 120),
    }
    assert ("trial-1", 2, "finished") in {
        (one["name"], one["rounds"], one["state"]) for one in status["runs"]
    }
    assert status["coordinator"] == "up"


@pytest.mark.usefixtures("finished")
def test_the_status_pages_and_metrics_of_both_sides_show_the_run(study: StudyInWindows) -> None:
    state = study.root / "st-mary" / "state"
    assert until(lambda: "2 of 2 online" in (study.study / "status.html").read_text())
    page = PageReader((study.study / "status.html").read_text())
    assert "trial-1 finished 2 of 2" in page.text
    metrics = parse((study.study / "metrics.prom").read_text())
    rounds = metrics["instahide_run_rounds_total"]
    assert {dict(one.labels)["run"]: one.value for one in rounds}["trial-1"] == 2
    assert "instahide_run_epsilon" not in metrics
    assert until(lambda: "trial-1" in (state / "status.html").read_text())
    own = parse((state / "metrics.prom").read_text())
    assert own["instahide_node_connected"][0].value == 1
    updates = own["instahide_node_updates_total"]
    assert {dict(one.labels)["run"]: one.value for one in updates}["trial-1"] == 2
    assert "run trial-1: round 2 done with" in study.coordinator.text
    assert "run trial-1, round 2: update sent" in study.hospitals["st-mary"].text


@pytest.mark.usefixtures("finished")
def test_a_name_is_used_once(study: StudyInWindows) -> None:
    text = instahide(*study.run("trial-1"), code=RefusedError.exit_code)
    assert "there is a run called 'trial-1' already" in text


def test_a_node_says_that_it_serves_and_is_not_served_twice(study: StudyInWindows) -> None:
    facts = json.loads(instahide("node", "status", study.root / "st-mary", "--format", "json"))
    assert (facts["worker"], facts["joined"], facts["ready"]["site"]) == ("listening", True, "st-mary")
    text = instahide("node", "start", study.root / "st-mary", code=RefusedError.exit_code)
    assert "already up" in text
    assert instahide("node", "status", study.root / "st-mary").startswith("site worker: listening")


def test_a_coordinator_is_not_started_twice(study: StudyInWindows) -> None:
    assert "already up" in instahide("coordinator", "start", study.study, code=RefusedError.exit_code)


def test_ctrl_c_stops_the_run_and_resume_goes_on_with_the_true_round_number(
    study: StudyInWindows, tmp_path: Path
) -> None:
    study.approve("trial-2", "num-server-rounds=100")
    words = study.run("trial-2", "num-server-rounds=100")
    with window(tmp_path / "run.log", *words) as running:
        study.wait_for_round("trial-2", 1, running)
        assert running.press_ctrl_c() == (130, [])
    assert f"instahide coordinator resume {study.study} trial-2" in running.text
    assert not (study.run_folder("trial-2") / "model.safetensors").exists()
    [state] = [run["state"] for run in study.status()["runs"] if run["name"] == "trial-2"]
    assert state in ("failed", "interrupted")
    done = study.events("trial-2", "checkpoint-saved")[-1]["round"]

    last = done + 1
    study.approve("trial-2", f"num-server-rounds={last}")  # fewer rounds are another plan
    words = ("coordinator", "resume", study.study, "trial-2", "--set", f"num-server-rounds={last}")
    output = instahide(*words)
    assert f"\nresumed after round {done}\n" in output
    assert f"round {last} done" in output
    assert f"round {done} done" not in output
    finished = study.events("trial-2", "round-finished")
    assert [event["round"] for event in finished] == list(range(1, last + 1))
    assert study.events("trial-2")[-1]["event"] == "run-finished"
    assert (study.run_folder("trial-2") / "model.safetensors").exists()


def test_with_secure_aggregation_the_coordinator_sees_sums_only(study: StudyInWindows) -> None:
    study.approve("hidden", "num-server-rounds=2", "secure-aggregation=true")
    output = instahide(*study.run("hidden", "num-server-rounds=2", "secure-aggregation=true"))
    assert "round 2 done" in output
    [session] = study.events("hidden", "session-opened")
    assert session["sites"] == ["northside", "st-mary"]
    assert [event["kind"] for event in study.events("hidden", "sum-opened")] == ["train", "train", "evaluate"]
    assert all(event["metrics"] == {} for event in study.events("hidden", "site-replied"))
    folder = study.run_folder("hidden")
    rows = json.loads((folder / "metrics.json").read_text())["rounds"]
    assert {site for row in rows for site in row["by-site"]} == {"all sites"}
    assert [row["sites"] for row in rows if "sites" in row] == [2, 2]
    assert rows[-1]["evaluate-accuracy-plain"] >= 0.0
    initial, trained = (load_file(folder / f"{name}.safetensors") for name in ("initial", "model"))
    assert any((trained[name] != initial[name]).any() for name in initial)


def test_a_run_waits_until_the_hospitals_have_approved_its_plan(
    study: StudyInWindows, tmp_path: Path
) -> None:
    with window(tmp_path / "run.log", *study.run("trial-3", "num-server-rounds=1")) as running:
        running.wait_for("until northside, st-mary approved the plan")
        for name in study.hospitals:
            listed = json.loads(instahide("node", "plan", "list", study.root / name, "--format", "json"))
            [waiting] = [row for row in listed if (row["status"], row["run"]) == ("pending", "trial-3")]
            study.hospitals[name].wait_for(f"a plan waits: instahide node plan show {study.root / name}")
            instahide("node", "plan", "approve", study.root / name, waiting["sha256"][:12])
        assert running.process.wait(120) == 0, running.text
    assert f"plan {waiting['sha256'][:12]}: " in running.text
    assert [event["round"] for event in study.events("trial-3", "round-finished")] == [1]


@pytest.mark.usefixtures("finished")
def test_the_audit_logs_of_hospitals_and_coordinator_vouch_for_each_other(study: StudyInWindows) -> None:
    for name in study.hospitals:
        words = ("log", "verify", study.root / name / "state" / "audit.jsonl")
        pinned = ("--public-key", study.root / name / "coordinator.pub")
        own = json.loads((study.root / name / f"{name}.request.json").read_text())["identity-key"]
        (study.root / f"{name}.pub").write_text(own)
        pinned = (*pinned, "--public-key", study.root / f"{name}.pub")
        against = ("--against", study.study / "audit.jsonl", *pinned, "--format", "json")
        facts = json.loads(instahide(*words, *against))
        assert facts["problems"] == []
        assert facts["heads-compared"] >= 6  # two rounds and an evaluation, both ways


def altered_bundle(canary: Path) -> Bundle:
    """Our app with client and worker code that leaves a file behind wherever it is imported or run."""
    package = Path(federation.__file__).parent
    files: dict[str, bytes | Path] = {f"federation/{name}": package / name for name in bundled_files(package)}
    files["LICENSE"] = b"any"
    files["pyproject.toml"] = tomli_w.dumps(app_description(RunConfig().to_run_config())).encode()
    evil = f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n".encode()
    header, rest = (package / "client_app.py").read_bytes().split(b"from __future__ import annotations\n", 1)
    files["federation/client_app.py"] = header + b"from __future__ import annotations\n" + evil + rest
    for name in ("site/__init__.py", "site/worker.py", "site/round_task.py", "sitecustomize.py"):
        files[f"federation/{name}"] = evil
    return bundle_from_files(files)


def test_altered_code_in_the_bundle_is_not_served_and_where_a_site_lets_it_never_runs(
    study: StudyInWindows, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    bundle = altered_bundle(canary)
    compile(zip_content(bundle)["federation/client_app.py"], "client_app.py", "exec")
    assert bundle.sha256 != build_bundle().sha256
    made, folder = load_study(study.study), CoordinatorFolder(study.study)
    settings = {"run-name": "altered", "num-server-rounds": 1, "start-deadline": 20.0, "max-failed-rounds": 0}
    config = prepare_run(made, settings)
    study.approve("altered", *(f"{key}={value}" for key, value in settings.items() if key != "run-name"))
    with ControlClient(find_superlink(folder), authority=folder.authority.certificate) as control:

        def ended() -> str:
            run_id = control.submit_run(bundle, config.to_run_config())
            assert until(lambda: control.run_status(run_id).is_finished)
            return control.run_status(run_id).status

        assert ended() == "finished:failed"
        assert {event["kind"] for event in study.events("altered", "site-refused")} == {"approval"}
        assert not study.events("altered", "site-replied")
        policies = [study.root / name / "policy.toml" for name in study.hospitals]
        kept = [policy.read_text() for policy in policies]
        for policy in policies:
            allow(policy, "plan-approval = false")
        try:
            assert ended() == "finished:completed"
        finally:
            for policy, text in zip(policies, kept, strict=True):
                policy.write_text(text)
    assert study.events("altered", "site-replied")
    assert not canary.exists()


def zip_content(bundle: Bundle) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(bundle.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow
def test_a_run_that_a_sites_policy_forbids_fails_with_the_sites_reason(study: StudyInWindows) -> None:
    text = instahide(*study.run("plain", "encoding=none", "max-failed-rounds=0"), code=1)
    assert "error: the run ended as finished:failed" in text
    refusals = study.events("plain", "site-refused")
    assert {event["site"] for event in refusals} <= {"st-mary", "northside"}  # one is enough to fail
    assert {event["reason"] for event in refusals} == {"this site trains on encoded images only"}
    assert not (study.run_folder("plain") / "model.safetensors").exists()


def test_what_is_not_there_is_named(study: StudyInWindows, tmp_path: Path) -> None:
    assert "is not a study folder" in instahide(
        "coordinator", "status", tmp_path, code=InvalidInputError.exit_code
    )
    assert "holds no node" in instahide("node", "status", tmp_path, code=InvalidInputError.exit_code)
