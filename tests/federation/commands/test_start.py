"""The two ``start`` verbs as services: ready, alive, a page, an orderly end; their processes are played."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from federation.cli import run
from federation.status.connection import read_connection
from federation.status.files import METRICS, PAGE
from instahide.errors import FederationError

from ..manager_socket import ManagerSocket, manager_socket
from ..signals import SendSoon, harmless_signals
from ..status.exposition_parser import parse
from ..status.node_files import make_node, open_site_log, serve_rounds
from ..status.page_reader import PageReader
from ..status.study_files import events_of_a_run, make_study, write_events

WITHIN = 120.0


@pytest.fixture(autouse=True)
def send() -> Iterator[SendSoon]:
    with harmless_signals() as send_soon:
        yield send_soon


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ManagerSocket]:
    with manager_socket(tmp_path, abstract=True) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.name)
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield manager


class Other(threading.Thread):
    """What the test does meanwhile, in the end sending SIGTERM; its failure fails the test."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self._work = work
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as problem:
            self.problem = problem
        os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> Other:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join()  # every wait in it has an end
        if self.problem is not None:
            raise self.problem


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def words_of(page: Path) -> str:
    return PageReader(page.read_text()).text if page.exists() else ""


def message_with(manager: ManagerSocket, key: str) -> dict[str, str]:
    """The next message with that assignment, whatever came before it."""
    while key not in (message := manager.receive()):
        pass
    return message


class PlayedCoordinator:
    gateway_port = 9443
    superlink_address = "127.0.0.1:1"

    def __init__(self) -> None:
        self.problem: FederationError | None = None
        self.is_stopped = False

    def check(self) -> None:
        if self.problem is not None:
            raise self.problem


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedCoordinator:
    coordinator = PlayedCoordinator()

    @contextmanager
    def start(*_: object, **__: object) -> Iterator[PlayedCoordinator]:
        try:
            yield coordinator
        finally:
            coordinator.is_stopped = True

    monkeypatch.setattr("federation.flower_processes.superlink.start_coordinator", start)
    monkeypatch.setattr(
        "federation.status.presence.superlink_presence", lambda *_: lambda: {100: "online", 101: "online"}
    )
    return coordinator


def test_a_coordinator_is_ready_keeps_its_page_and_ends_with_0_on_sigterm(
    tmp_path: Path, systemd: ManagerSocket, played: PlayedCoordinator, capfd: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study")
    page = study.path / PAGE

    def meanwhile() -> None:
        assert "EXTEND_TIMEOUT_USEC" in systemd.receive()
        assert systemd.receive()["READY"] == "1"
        assert message_with(systemd, "WATCHDOG") == {"WATCHDOG": "1"}
        until(lambda: "2 of 3 online" in words_of(page))
        write_events(study, "trial-1", events_of_a_run(1))
        until(lambda: "trial-1" in words_of(page))

    with Other(meanwhile):
        assert run(["coordinator", "start", str(study.path)]) == 0
    assert message_with(systemd, "STOPPING")["STOPPING"] == "1"
    assert played.is_stopped
    assert "was stopped, in order" in words_of(page)
    assert parse((study.path / METRICS).read_text())["instahide_coordinator_up"][0].value == 0
    lines = capfd.readouterr().out.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ .", line) for line in lines)
    said = [line.split(" ", 1)[1] for line in lines]
    assert "gateway on 0.0.0.0 port 9443; Ctrl-C stops" in said
    assert any(line.startswith("run trial-1: round 1 done with st-mary") for line in said)
    assert said[-1] == "stopped"
    assert "NOTIFY_SOCKET" not in os.environ


def test_a_coordinator_whose_process_ended_fails_with_5_and_says_so_on_the_page(
    tmp_path: Path, played: PlayedCoordinator, capfd: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study")
    played.problem = FederationError("the gateway ended with status 1:\nlast lines", hint="see its log")
    assert run(["coordinator", "start", str(study.path)]) == 5
    assert "is down (the gateway ended with status 1:)" in words_of(study.path / PAGE)
    output = capfd.readouterr()
    assert "error: the gateway ended" in output.err
    assert "stopped" not in output.out
    assert played.is_stopped


def test_sigterm_during_the_start_of_a_coordinator_ends_it_with_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def never_up(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(WITHIN)
        pytest.fail("SIGTERM was not heard")

    monkeypatch.setattr("federation.flower_processes.superlink.start_coordinator", never_up)
    study = make_study(tmp_path / "study")
    assert run(["coordinator", "start", str(study.path)]) == 0
    assert capfd.readouterr().out.endswith("stopped\n")


def test_the_files_go_where_they_are_asked_for_and_a_folder_that_is_not_there_is_named(
    tmp_path: Path, played: PlayedCoordinator, capfd: pytest.CaptureFixture[str]
) -> None:
    study, folder = make_study(tmp_path / "study"), tmp_path / "textfile"
    words = ["coordinator", "start", str(study.path), "--status-folder", str(folder)]
    assert run(words) == 2
    assert f"hint: mkdir -p {folder}" in capfd.readouterr().err
    folder.mkdir()
    with Other(lambda: until((folder / METRICS).exists)):
        assert run(words) == 0
    assert sorted(path.name for path in folder.iterdir()) == [METRICS, PAGE]
    assert not (study.path / PAGE).exists()


class PlayedProcess:
    def __init__(self) -> None:
        self.is_running, self.stops = True, 0

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture
def played_node(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Worker and relay of a node; a worker that falls is started again as another."""
    parts: dict[str, Any] = {"workers": [], "relay": PlayedProcess()}

    def start_worker(*_: object, **__: object) -> PlayedProcess:
        parts["workers"].append(PlayedProcess())
        return parts["workers"][-1]

    @contextmanager
    def supervised(relay: PlayedProcess, *, on_exit: Callable[..., None]) -> Iterator[None]:
        parts["on_exit"] = on_exit
        yield
        relay.stop()

    monkeypatch.setattr("federation.node_folder.start_worker", start_worker)
    monkeypatch.setattr("federation.node_folder.relay_process", lambda _: parts["relay"])
    monkeypatch.setattr("federation.flower_processes.node.supervised_node", supervised)
    monkeypatch.setattr("federation.flower_processes.node.is_connected", lambda _: True)
    return parts


def test_a_node_tells_of_its_connection_its_worker_and_its_answers(
    tmp_path: Path,
    systemd: ManagerSocket,
    played_node: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    node = make_node(tmp_path / "n")
    log = open_site_log(node)

    def meanwhile() -> None:
        assert message_with(systemd, "READY")["READY"] == "1"
        until(lambda: read_connection(node.state).state == "connected")
        played_node["on_exit"](5, "nothing answers at the coordinator's address", 1.0)
        assert read_connection(node.state).state in ("retrying", "connected")
        until(lambda: read_connection(node.state).state == "connected")
        played_node["workers"][0].is_running = False
        until(lambda: len(played_node["workers"]) == 2)
        serve_rounds(log, "trial-1", 1)
        until(lambda: "trial-1 1 0 1" in words_of(node.state / PAGE))
        assert message_with(systemd, "WATCHDOG") == {"WATCHDOG": "1"}

    with Other(meanwhile):
        assert run(["node", "start", str(node.path)]) == 0
    assert message_with(systemd, "STOPPING")["STOPPING"] == "1"
    assert [worker.stops for worker in played_node["workers"]] == [0, 1]
    assert played_node["relay"].stops == 1
    assert read_connection(node.state).reason == "stopped, in order"
    parse((node.state / METRICS).read_text())
    said = [line.split(" ", 1)[1] for line in capfd.readouterr().out.splitlines()]
    assert said[0].startswith("starting the site worker")
    assert said.count("connected: this node serves the federation") == 2
    again = "node ended (status 5): nothing answers at the coordinator's address; again in 1 s"
    for line in (again, "the site worker ended; starting it again", "run trial-1, round 1: update sent"):
        assert line in said, line
    assert said[-1] == "stopped"


def test_a_worker_that_does_not_come_up_again_ends_the_node_with_5(
    tmp_path: Path, played_node: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node(tmp_path / "n")
    first = PlayedProcess()
    first.is_running = False
    answers = [first]

    def start_worker(*_: object, **__: object) -> PlayedProcess:
        if not answers:
            raise FederationError("site worker ended (status 4) before it was ready:\n...", hint="its log")
        return answers.pop()

    monkeypatch.setattr("federation.node_folder.start_worker", start_worker)
    assert run(["node", "start", str(node.path)]) == 5
    assert first.stops == 1
    assert read_connection(node.state).reason.startswith("site worker ended (status 4)")


def test_a_second_start_leaves_the_first_ones_files_alone(
    tmp_path: Path, played_node: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from federation.status.connection import write_connection
    from instahide.errors import RefusedError

    from ..status.study_files import NOW

    node = make_node(tmp_path / "n")
    write_connection(node.state, "connected", NOW)

    def start_worker(*_: object, **__: object) -> None:
        raise RefusedError("a site worker is already up", hint="stop the other")

    monkeypatch.setattr("federation.node_folder.start_worker", start_worker)
    assert run(["node", "start", str(node.path)]) == 3
    assert read_connection(node.state).state == "connected"
    assert not (node.state / PAGE).exists()
