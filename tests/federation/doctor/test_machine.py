"""Disk, memory, GPU and time service; programs of the system are replaced by small scripts."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import psutil
import pytest

from federation.doctor import machine
from federation.doctor.checks import State
from federation.doctor.machine import (
    GIB,
    check_disk,
    check_gpu,
    check_memory,
    check_time_service,
    container_limit,
)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_disk_is_judged_by_its_free_bytes(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert check_disk(tmp_path, least=0, enough=free / 2).state is State.ok
    assert check_disk(tmp_path, least=0, enough=free * 2).state is State.warning
    assert check_disk(tmp_path, least=free * 2, enough=free * 3).state is State.failed
    with pytest.raises(FileNotFoundError):
        check_disk(tmp_path / "nowhere")


def test_memory_is_judged_by_what_is_free() -> None:
    free = psutil.virtual_memory().available
    assert check_memory(least=0, enough=0).state is State.ok
    assert check_memory(least=0, enough=free * 4).state is State.warning
    assert check_memory(least=free * 4).state is State.failed


def test_a_policy_above_the_machines_memory_limits_nothing() -> None:
    total = psutil.virtual_memory().total / GIB
    outcome = check_memory(least=0, enough=0, limit_gib=total * 2)
    assert outcome.state is State.warning
    advised = float(outcome.fix.rsplit(" ", 1)[1])
    assert check_memory(least=0, enough=0, limit_gib=advised).state is not State.warning or advised == 0.25


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert container_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{200 * 2**20}\n")
    assert container_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    assert container_limit(tmp_path) == (GIB, 200 * 2**20)
    monkeypatch.setattr(machine, "container_limit", lambda: (GIB // 2, GIB // 4))
    outcome = check_memory()
    assert outcome.state is State.failed
    assert outcome.seen.endswith("of 0.5 GiB are free")


@pytest.mark.skipif(sys.platform != "linux", reason="device files are Linux's")
def test_a_gpu_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    missing = [str(tmp_path / "nvidia0")]
    assert check_gpu("cpu", devices=missing).state is State.ok
    assert check_gpu("auto", devices=missing).state is State.ok
    assert check_gpu("cuda:0", devices=missing).state is State.failed


@pytest.mark.parametrize(
    ("device", "printed", "state"),
    [
        ("auto", "1|A card", State.ok),
        ("cuda", "1|A card", State.ok),
        ("cuda:1", "1|A card", State.failed),
        ("cuda:1", "2|A card|Another", State.ok),
        ("cuda", "0", State.failed),
        ("auto", "0", State.warning),
        ("auto", "", State.failed),
    ],
)
def test_torch_is_asked_where_there_is_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, printed: str, state: State
) -> None:
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "python", f"echo '{printed}'")))
    (tmp_path / "nvidia0").touch()
    outcome = check_gpu(device, devices=[str(tmp_path / "nvidia0")])
    assert outcome.state is state
    if state is State.ok:
        assert "A card" in outcome.seen


def test_a_torch_that_hangs_or_fails_is_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia0").touch()
    devices = [str(tmp_path / "nvidia0")]
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "slow", "exec sleep 60")))
    assert check_gpu("auto", devices=devices, within=0.1).state is State.skipped
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "broken", "echo 1; exit 3")))
    assert check_gpu("auto", devices=devices).state is State.failed


# chronyc -c tracking: reference, its name, stratum, time, offset in seconds, ..., leap status
CHRONY = "D8EF2308,time1,2,1780000000.1,{offset},0.0001,0.0002,-1.2,0.001,0.03,0.02,0.001,64.2,{leap}"


@pytest.mark.parametrize(
    ("chronyc", "timedatectl", "state"),
    [
        (CHRONY.format(offset="-0.000123", leap="Normal"), "no", State.ok),
        (CHRONY.format(offset="-1.5", leap="Normal"), "yes", State.warning),
        (CHRONY.format(offset="7.0", leap="Normal"), "yes", State.failed),
        (CHRONY.format(offset="0.0", leap="Not synchronised"), "yes", State.warning),
        ("506 Cannot talk to daemon", "yes", State.ok),
        (None, "yes", State.ok),
        (None, "no", State.warning),
        (None, "", State.skipped),
        (None, None, State.skipped),
    ],
)
def test_a_time_service_is_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chronyc: str | None,
    timedatectl: str | None,
    state: State,
) -> None:
    for name, printed in (("chronyc", chronyc), ("timedatectl", timedatectl)):
        if printed is not None:
            script(tmp_path / name, f"echo '{printed}'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_time_service().state is state


def test_a_time_service_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "chronyc", "exec /bin/sleep 60")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "CLOCK_SECONDS", 0.1)
    assert check_time_service().state is State.skipped
