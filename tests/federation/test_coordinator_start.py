"""What comes before the gateway opens: secrets that are private, and revoked keys taken off."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from federation.coordinator.revocations import Revocation
from federation.flower_processes import superlink
from federation.flower_processes.superlink import (
    Coordinator,
    CoordinatorFolder,
    create_coordinator_folder,
    start_coordinator,
)
from federation.revocation import refuse
from instahide.errors import FederationError, IntegrityError, InvalidInputError, RefusedError


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    return create_coordinator_folder(tmp_path / "study", names=["localhost"])


@dataclass
class Process:
    """A process that is up as soon as it is started; ``log`` is told when."""

    name: str
    log: list[str]
    pid: int = field(default_factory=os.getpid)
    is_running: bool = True

    def start(self) -> None:
        self.log.append(f"{self.name} started")

    def wait_until(self, ready: Callable[[], bool], *, within: float) -> None:
        self.log.append(f"{self.name} ready")


def bring_up(folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> list[str]:
    log: list[str] = []

    def take_off(coordinator: Coordinator) -> None:
        log.append("taken off")
        if fails:
            raise FederationError("the SuperLink does not answer", hint="see its log")

    monkeypatch.setattr(superlink, "_take_off_revoked", take_off)
    processes = [Process(name, log) for name in ("superlink", "superexec", "gateway")]
    made = Coordinator(folder, *processes, superlink_port=1, gateway_port=2)  # type: ignore[arg-type]
    try:
        superlink._bring_up(made, "localhost", 1.0)
    except FederationError:
        log.append("failed")
    return log


def revoke_somebody(folder: CoordinatorFolder) -> None:
    known = {"name": "st-mary", "identity_key": "", "time": "2026-05-04"}
    refuse(folder.path, [Revocation(node_id=7, node_key="SHA256:x", **known)])


def test_without_revoked_keys_all_three_start_at_once(
    folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = bring_up(folder, monkeypatch)
    assert set(log[:3]) == {"superlink started", "superexec started", "gateway started"}
    assert "taken off" not in log


def test_the_gateway_opens_only_after_revoked_keys_are_off(
    folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoke_somebody(folder)
    log = bring_up(folder, monkeypatch)
    order = ["superlink ready", "taken off", "gateway started", "gateway ready"]
    assert [line for line in log if line in order] == order


def test_it_does_not_open_at_all_where_they_cannot_be_taken_off(
    folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoke_somebody(folder)
    log = bring_up(folder, monkeypatch, fails=True)
    assert log[-2:] == ["taken off", "failed"]
    assert "gateway started" not in log


def test_a_damaged_list_stops_the_start(folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.path / "revoked.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"revoked\.json is damaged"):
        bring_up(folder, monkeypatch)


@pytest.mark.parametrize("name", ["superlink.key", "gateway.key", "superexec.secret"])
def test_a_secret_that_is_not_private_is_refused_before_anything_is_started(
    folder: CoordinatorFolder, tmp_path: Path, name: str
) -> None:
    path = folder.path / name
    path.chmod(0o640)
    with pytest.raises(RefusedError, match=rf"{name} can be read by others"):
        start_coordinator(folder)
    path.chmod(0o600)
    path.rename(tmp_path / name)
    if name != "superexec.secret":
        with pytest.raises(InvalidInputError, match=f"{name} is missing"):
            start_coordinator(folder)
    path.symlink_to(tmp_path / name)
    with pytest.raises(RefusedError, match="is a symbolic link"):
        start_coordinator(folder)
    assert not folder.instance.exists()
