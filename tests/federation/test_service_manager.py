"""The notification protocol against a real socket, under a path and under an abstract name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from federation.service_manager import ServiceManager

from .manager_socket import manager_socket


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_a_service_says_when_it_starts_serves_and_ends(tmp_path: Path, abstract: bool) -> None:
    with manager_socket(tmp_path, abstract=abstract) as systemd:
        environment = {"NOTIFY_SOCKET": systemd.name, "HOME": "/"}
        manager = ServiceManager.from_environment(environment)
        assert environment == {"HOME": "/"}, "a child could speak in our place"
        manager.starting("reading images", seconds=2.5)
        assert systemd.receive() == {"STATUS": "reading images", "EXTEND_TIMEOUT_USEC": "2500000"}
        manager.ready("port 9443")
        assert systemd.receive() == {"READY": "1", "STATUS": "port 9443"}
        manager.alive()  # no watchdog was asked for
        manager.stopping()
        assert systemd.receive() == {"STOPPING": "1", "STATUS": "stopping"}
        assert systemd.is_empty()


def test_signs_of_life_come_at_half_the_watchdogs_time(tmp_path: Path) -> None:
    now = 100.0
    with manager_socket(tmp_path) as systemd:
        manager = ServiceManager(systemd.name, watchdog_seconds=60.0, monotonic=lambda: now)
        manager.alive()
        assert systemd.receive() == {"WATCHDOG": "1"}
        now = 129.0
        manager.alive()
        assert systemd.is_empty()
        now = 130.0
        manager.alive()
        assert systemd.receive() == {"WATCHDOG": "1"}


@pytest.mark.parametrize(
    ("microseconds", "pid", "is_watched"),
    [
        ("10000000", "", True),
        pytest.param("10000000", str(os.getpid()), True, id="this process"),
        ("10000000", "1", False),  # meant for another process
        ("ten", "", False),
        ("", "", False),
    ],
)
def test_the_watchdog_of_the_environment_is_ours_or_not(
    tmp_path: Path, microseconds: str, pid: str, is_watched: bool
) -> None:
    with manager_socket(tmp_path) as systemd:
        environment = {
            "NOTIFY_SOCKET": systemd.name,
            "WATCHDOG_USEC": microseconds,
            "WATCHDOG_PID": pid,
        }
        ServiceManager.from_environment(environment).alive()
        assert environment == {}
        assert systemd.is_empty() != is_watched


@pytest.mark.parametrize("address", ["", "@", "relative/path", "vsock:2:1234", "/no/such/socket"])
def test_without_a_manager_that_listens_nothing_happens(address: str) -> None:
    manager = ServiceManager.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
    manager.ready("here")
    manager.alive()
    manager.stopping()
