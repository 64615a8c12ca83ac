"""The units of deploy/systemd, unchanged, run by a real systemd: a study, a site in one piece, and in two.

systemd is process 1 of a laboratory of its own (``lab/become_systemd.sh``), on this kernel: what the units
forbid is forbidden. So a unit whose hardening breaks the program fails here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .deploy_files import ROOT
from .lab.laboratory import why_not

CONTROL_GROUPS = Path("/sys/fs/cgroup/systemd")
SYSTEMD = Path("/lib/systemd/systemd")
SECONDS = 1200.0
ALONE = "--net --mount --ipc --uts --cgroup --pid --fork --kill-child --mount-proc"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.federated,
    pytest.mark.timeout(1400),
    pytest.mark.skipif(os.geteuid() != 0, reason="a systemd of one's own: root only"),
    pytest.mark.skipif(not SYSTEMD.exists(), reason="systemd is not installed"),
    pytest.mark.skipif(
        not (CONTROL_GROUPS / "cgroup.procs").exists(), reason="no control group hierarchy of systemd's own"
    ),
]


PREFIX = "instahide-laboratory-"


@contextmanager
def control_group() -> Iterator[Path]:
    """A group of our own, below which that systemd makes its own; gone afterwards."""
    for left in CONTROL_GROUPS.glob(
        f"{PREFIX}*"
    ):  # by a test that was killed, and with it all it had started
        if not Path("/proc", left.name.removeprefix(PREFIX)).exists():
            remove(left)
    group = CONTROL_GROUPS / f"{PREFIX}{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        remove(group)


def remove(group: Path) -> None:
    for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
        folder.rmdir()
    group.rmdir()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the trial saw."""
    if reason := why_not():
        pytest.skip(reason)
    state = tmp_path_factory.mktemp("machine")
    for folder in (state, state / "lib", state / "srv"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    over, console = state / "srv/trial.over", state / "console"
    become = [ROOT / "tests/deploy/lab/become_systemd.sh", state, ROOT, sys.prefix, sys.base_prefix]
    with control_group() as group, console.open("wb") as output:
        enter = f'echo $$ > {group}/cgroup.procs; exec setpriv --pdeathsig KILL unshare {ALONE} bash "$@"'
        machine = subprocess.Popen(["sh", "-c", enter, "sh", *map(str, become)], stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + SECONDS
            while not over.exists() and machine.poll() is None and time.monotonic() < deadline:
                time.sleep(0.5)
        finally:
            machine.kill()
            machine.wait()
            _wait_until_empty(group)
    errors = (state / "srv/trial.err").read_text() if (state / "srv/trial.err").exists() else ""
    assert over.exists(), console.read_text()[-3000:] + errors
    assert errors == "", errors[-5000:]
    found: dict[str, Any] = json.loads((state / "srv/trial.out").read_text())
    return found


def _wait_until_empty(group: Path) -> None:
    """The kernel ends a process namespace a moment after its first process."""
    for _ in range(200):
        if not any(path.read_text() for path in group.rglob("cgroup.procs")):
            return
        time.sleep(0.1)


@pytest.mark.parametrize("name", ["coordinator", "node", "worker", "relay"])
def test_each_unit_comes_up_at_the_first_start(seen: dict[str, Any], name: str) -> None:
    found = seen[name]
    assert (found["ActiveState"], found["SubState"]) == ("active", "running"), found
    assert (found["Result"], found["NRestarts"], found["problem"]) == ("success", "0", "")


def test_readiness_is_told_by_the_program_itself(seen: dict[str, Any]) -> None:
    """`systemctl start` of Type=notify returned, and what it says is ours."""
    assert "9443" in seen["coordinator"]["StatusText"]
    assert "worker ready" in seen["node"]["StatusText"]


@pytest.mark.parametrize("run", ["whole run", "split run"])
def test_a_round_is_trained_inside_the_sandbox(seen: dict[str, Any], run: str) -> None:
    assert seen[run]["code"] == 0, seen[run]
    assert seen[run]["last"] == "run-finished"


def test_the_worker_has_no_network_and_the_relay_no_images(seen: dict[str, Any]) -> None:
    inside = seen["inside"]
    assert inside["worker's interfaces"] == ["lo"]
    assert "outside" in inside["relay's interfaces"]
    assert inside["relay's view of the node"] == "refused"
    assert inside["relay's view of the images"] == "refused"
    assert inside["worker's view of its node"] == "read"


def test_no_process_is_root_has_a_capability_or_unfiltered_calls(seen: dict[str, Any]) -> None:
    users = set()
    for unit, processes in seen["processes"].items():
        assert processes, unit
        for process in processes:
            users.add(process["Uid"])
            assert len(set(process["Uid"].split())) == 1
            assert "0" not in process["Uid"].split()
            assert int(process["CapEff"], 16) == int(process["CapBnd"], 16) == 0
            assert process["NoNewPrivs"] == "1"
            assert process["Seccomp"] == "2"
    assert len(users) == 3


@pytest.mark.parametrize(
    "name", ["node stopped", "relay@st-mary stopped", "worker@st-mary stopped", "coordinator@trial stopped"]
)
def test_a_stop_is_orderly_and_leaves_no_process(seen: dict[str, Any], name: str) -> None:
    found = seen[name]
    assert (found["ActiveState"], found["Result"], found["ExecMainStatus"]) == ("inactive", "success", "0")
    assert found["left"] == []
