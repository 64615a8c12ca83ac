"""The gateway's port: free, ours, or somebody else's."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from federation.doctor.checks import State
from federation.doctor.ports import check_gateway, check_port, check_superlink
from federation.flower_processes.superlink import CoordinatorFolder, create_coordinator_folder
from federation.provisioning import issue_server_certificate
from federation.supervision import free_port
from instahide.errors import RefusedError

from .gateways import HOST, gateway


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    return create_coordinator_folder(tmp_path / "study", names=["fl.example.org"])


def test_a_free_port_is_free_and_nothing_stays_bound(folder: CoordinatorFolder) -> None:
    port = free_port()
    for _ in range(2):
        assert check_port(folder, "0.0.0.0", port).state is State.ok
    assert check_gateway(folder, "0.0.0.0", port, "fl.example.org").state is State.skipped


def test_a_port_of_a_program_that_speaks_no_tls_fails(folder: CoordinatorFolder) -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]

        def hang_up() -> None:
            other.accept()[0].close()

        program = threading.Thread(target=hang_up)
        program.start()
        outcome = check_port(folder, HOST, port)
        program.join()
    assert outcome.state is State.failed
    assert "cannot be used" in outcome.seen
    if sys.platform == "linux":
        assert f"process {os.getpid()}" in outcome.seen


def test_an_address_that_is_not_this_machines_fails(folder: CoordinatorFolder) -> None:
    assert check_port(folder, "192.0.2.1", free_port()).state is State.failed  # RFC 5737: nobody's


def test_our_gateway_is_known_by_its_certificate(folder: CoordinatorFolder, tmp_path: Path) -> None:
    with gateway(folder.gateway, folder.authority.certificate) as address:
        outcome = check_port(folder, HOST, address.port)
        assert (outcome.state, outcome.seen) == (State.ok, f"port {address.port} is in use by our gateway")
        assert check_gateway(folder, HOST, address.port, "fl.example.org").state is State.ok
    other = issue_server_certificate(folder.authority, tmp_path, names=["fl.example.org"])
    with gateway(other, folder.authority.certificate) as address:
        outcome = check_port(folder, HOST, address.port)
        assert outcome.state is State.failed
        assert "another certificate" in outcome.seen


def test_a_superlink_that_is_down_is_not_a_fault_and_a_false_one_is(folder: CoordinatorFolder) -> None:
    assert check_superlink(folder).state is State.skipped
    folder.instance.write_text("{}")
    with pytest.raises(RefusedError, match="damaged"):
        check_superlink(folder)
