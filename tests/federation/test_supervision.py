"""Child processes: started, watched, restarted, and gone when we are gone."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from federation.supervision import ManagedProcess, RestartedProcess, free_port, group_members
from instahide.errors import FederationError

SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
WITH_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]); " + SLEEPER


def python(tmp_path: Path, program: str, **settings: float) -> ManagedProcess:
    return ManagedProcess(
        "child",
        [sys.executable, "-I", "-S", "-c", program],
        log_path=tmp_path / "log" / "child.log",
        **settings,
    )


def until(condition: Callable[[], bool], within: float = 30.0) -> bool:
    deadline = time.monotonic() + within
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_process_runs_logs_and_stops(tmp_path: Path) -> None:
    with python(tmp_path, SLEEPER) as child:
        child.wait_until(lambda: "ready" in child.log_tail(), within=30)
        assert child.is_running
        assert child.exit_code is None
    assert child.exit_code == -signal.SIGTERM
    assert stat.S_IMODE(child.log_path.stat().st_mode) == 0o600


def test_stop_ends_grandchildren_and_programs_that_ignore_sigterm(tmp_path: Path) -> None:
    with python(tmp_path, WITH_CHILD) as child:
        assert until(lambda: child.log_tail().count("ready") == 2)
        assert len(group_members(child.pid)) == 2
    assert group_members(child.pid) == []
    with python(tmp_path, STUBBORN, stop_seconds=0.3) as stubborn:
        assert until(lambda: "ready" in stubborn.log_tail())
    assert stubborn.exit_code == -signal.SIGKILL


def test_a_process_that_ends_before_it_is_ready_is_reported_with_its_output(tmp_path: Path) -> None:
    child = python(tmp_path, "print('no such disk'); raise SystemExit(7)").start()
    with pytest.raises(FederationError, match=r"status 7[\s\S]*no such disk"):
        child.wait_until(lambda: False, within=30)
    child.stop()


def test_a_process_that_is_never_ready_is_reported(tmp_path: Path) -> None:
    with python(tmp_path, SLEEPER) as child, pytest.raises(FederationError, match=r"not ready within 0\.2 s"):
        child.wait_until(lambda: False, within=0.2)


def test_a_program_that_does_not_exist_and_a_second_start_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="cannot be started"):
        ManagedProcess("ghost", [str(tmp_path / "ghost")], log_path=tmp_path / "ghost.log").start()
    with python(tmp_path, SLEEPER) as child, pytest.raises(FederationError, match="already running"):
        child.start()


def test_the_log_tail_is_of_this_start_only(tmp_path: Path) -> None:
    child = python(tmp_path, "import os; print('process', os.getpid())")
    for _ in range(2):
        child.start().wait()
        assert child.log_tail() == f"process {child.pid}"
        child.stop()
    assert len(child.log_path.read_text().splitlines()) == 2


def test_a_killed_process_comes_back_after_a_growing_wait(tmp_path: Path) -> None:
    exits: list[tuple[int, str | None, float]] = []
    three = threading.Event()

    def note(status: int, reason: str | None, wait: float) -> None:
        exits.append((status, reason, wait))
        if len(exits) == 3:
            three.set()

    kept = RestartedProcess(
        python(tmp_path, SLEEPER),
        first_wait=0.05,
        longest_wait=0.15,
        explain=lambda status, output: f"{status}: {output.strip()}",
        on_exit=note,
    )
    with kept:
        for restarts in range(3):
            assert until(lambda count=restarts: kept.restarts == count and "ready" in kept.process.log_tail())
            os.kill(kept.process.pid, signal.SIGKILL)
        assert three.wait(30)
        assert until(lambda: kept.restarts == 3 and kept.process.is_running)
    assert [wait for _, _, wait in exits] == [0.05, 0.1, 0.15]  # doubled, then held at the longest
    assert {reason for _, reason, _ in exits} == {"-9: ready"}
    assert not kept.process.is_running


def test_the_wait_starts_again_after_a_steady_time(tmp_path: Path) -> None:
    waits: list[float] = []
    kept = RestartedProcess(
        python(tmp_path, "pass"),
        first_wait=0.05,
        steady_after=0.0,
        on_exit=lambda *seen: waits.append(seen[2]),
    )
    with kept:
        assert until(lambda: len(waits) >= 3)
    assert set(waits) == {0.05}


def test_stopping_while_it_waits_to_restart_starts_nothing(tmp_path: Path) -> None:
    kept = RestartedProcess(python(tmp_path, "pass"), first_wait=600).start()
    assert until(lambda: kept.last_exit_code == 0)
    kept.stop()
    assert kept.restarts == 0
    assert not kept.process.is_running


PARENT = """
import pathlib, sys, time
from federation.supervision import ManagedProcess
child = ManagedProcess("child", [sys.executable, "-c", {program!r}], log_path=pathlib.Path({log!r})).start()
child.wait_until(lambda: child.log_tail().count("ready") == 2, within=30)
print(child.pid, flush=True)
{then}
"""


@pytest.mark.parametrize(
    ("then", "number"),
    [
        ("pass", None),
        ("raise SystemExit(3)", None),
        ("time.sleep(600)", signal.SIGINT),
        ("time.sleep(600)", signal.SIGTERM),
        ("time.sleep(600)", signal.SIGKILL),
    ],
    ids=["normal end", "exit status", "Ctrl-C", "SIGTERM", "SIGKILL"],
)
def test_no_child_outlives_its_parent(tmp_path: Path, then: str, number: signal.Signals | None) -> None:
    text = PARENT.format(program=WITH_CHILD, log=str(tmp_path / "child.log"), then=then)
    with subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        if number is not None:
            assert len(group_members(group)) == 2
            parent.send_signal(number)
        parent.wait(30)
    assert until(lambda: group_members(group) == [])
    assert is_gone(group)


def test_a_free_port_can_be_bound() -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
