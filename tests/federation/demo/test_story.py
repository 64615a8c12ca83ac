"""The demonstration's parts that need no processes, and once, marked slow, the whole of it."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from federation.cli import run
from federation.demo.data import prepare
from federation.demo.report import write_page
from federation.demo.settings import HOSPITALS, VICTIM, DemoSettings
from federation.demo.story import Accident, describe_data, measure_membership
from instahide.errors import InstaHideError


@pytest.fixture(scope="module")
def data():
    return prepare(None, HOSPITALS, concentration=0.5, split_seed=7)


def settings(out: Path) -> DemoSettings:
    return DemoSettings(out=out)


@pytest.mark.statistical
def test_an_outsider_does_better_than_guessing_and_the_page_says_so(data, tmp_path: Path) -> None:
    measured = measure_membership(settings(tmp_path), data)
    mixed = measured["k=4"]
    # 179 non-members and at least 500 members: the AUC of a guesser has a standard deviation of
    # sqrt((P + Q + 1) / (12 P Q)) < 0.026; 0.63 is five of them away (false alarm < 3e-7).
    assert mixed["metrics"]["auc"] > 0.63
    assert measured["k=1"]["metrics"]["auc"] > mixed["metrics"]["auc"]
    assert "epsilon" not in json.dumps(measured).lower()
    results = {
        "data": describe_data(data),
        "membership": measured,
        "alone": {name: dict.fromkeys(("plain", "one-view", "ten-views"), 0.5) for name in HOSPITALS},
        "federated-plain": {"final": dict.fromkeys(("plain", "one-view", "ten-views"), 0.9), "rounds": []},
        "federated-encoded": {
            "final": dict.fromkeys(("plain", "one-view", "ten-views"), 0.7),
            "rounds": [{"round": 0, "evaluate-accuracy-plain": 0.1}],
            "accident": {"hospital": VICTIM, "killed-in-round": 3, "rounds-without-it": [3]},
        },
    }
    write_page(settings(tmp_path), data, results)
    page = (tmp_path / "index.html").read_text()
    assert f"{mixed['metrics']['auc']:.3f}" in page
    assert "InstaHide is broken" in page
    assert page.count("data:image/png;base64,") == 2


class Victim:
    killed = revived = 0

    def kill(self) -> None:
        self.killed += 1

    def revive_worker(self) -> None:
        self.revived += 1


class OneVictim:
    def __init__(self) -> None:
        self.hospitals = {VICTIM: Victim()}


def test_the_accident_happens_once_in_its_round_and_is_told_by_the_events(tmp_path: Path) -> None:
    federation = OneVictim()
    accident = Accident(settings(tmp_path), federation, lambda _: None)
    events = []
    for number in range(1, 5):
        events.append({"event": "round-started", "round": number})
        sites = ["st-mary"] if number == 3 else ["st-mary", VICTIM]
        events.append({"event": "round-finished", "round": number, "sites": sites})
    for event in events:
        accident.watch(event)
    assert (federation.hospitals[VICTIM].killed, federation.hospitals[VICTIM].revived) == (1, 1)
    told = accident.summary(events)
    assert told["rounds-without-it"] == [3]
    assert told["rounds-with-it"] == [1, 2, 4]


def test_a_demonstration_whose_accident_did_not_happen_is_a_failure(tmp_path: Path) -> None:
    accident = Accident(settings(tmp_path), OneVictim(), lambda _: None)
    with pytest.raises(InstaHideError, match="did not happen"):
        accident.summary([])


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert run(["demo", "--out", str(tmp_path)]) == 3
    assert "hint:" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.mark.slow
@pytest.mark.federated
@pytest.mark.timeout(600)
def test_the_whole_demonstration_ends_well_and_leaves_no_process(tmp_path: Path, capsys) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    assert run(["demo", "--out", str(tmp_path / "demo"), "--rounds", "3", "--format", "json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["federated-plain"]["final"]["plain"] > 0.8
    assert results["federated-encoded"]["final"]["plain"] is not None
    assert 3 in results["federated-encoded"]["accident"]["rounds-without-it"]
    assert (tmp_path / "demo" / "index.html").read_text().startswith("<!doctype html>")
    left = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.pid not in before and "guardian" not in " ".join(process.cmdline())
    ]
    assert left == []
