"""Revocation with a real SuperLink behind a real gateway: connected nodes, restarts, and coming back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from federation.doctor.checks import State
from federation.doctor.network import Address
from federation.doctor.registration import check_registration
from federation.flower_processes.control import ControlClient
from federation.flower_processes.node import explain_node_exit, is_connected
from federation.flower_processes.superlink import Coordinator, CoordinatorFolder, start_coordinator
from federation.joining import JoinRequest
from federation.node_folder import NodeFolder, create_node, join, relay_process
from federation.node_rotation import rotate
from federation.revocation import revoke, take_off
from federation.study import Study, admit, create_study
from federation.supervision import free_port
from instahide.errors import FederationError

pytestmark = [pytest.mark.federated, pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE = 120.0  # seconds, for machines with much else to do


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return create_study(tmp_path / "study", names=("127.0.0.1",), listen="127.0.0.1", port=free_port())


def started(study: Study) -> Coordinator:
    return start_coordinator(
        CoordinatorFolder(study.path), gateway_port=study.port, num_threads=1, within=PATIENCE
    )


def control_of(coordinator: Coordinator) -> ControlClient:
    return ControlClient(coordinator.superlink_address, authority=coordinator.folder.authority.certificate)


def take_in(study: Study, control: ControlClient, folder: NodeFolder, request: JoinRequest) -> None:
    node_id = control.register_node(request.public_key.encode(), name=request.name)
    join(folder, admit(study, request, node_id))
    take_off(study.path, control)


def test_a_revoked_node_is_cut_off_refused_ever_after_and_comes_back_with_new_keys(
    study: Study, tmp_path: Path
) -> None:
    """First while the coordinator is up and the node connected, then while the coordinator is down."""
    rng = np.random.default_rng(0)
    images = tmp_path / "scans.npz"
    np.savez(images, x=rng.integers(0, 256, (80, 8, 8), dtype=np.uint8), y=np.arange(80) % 2)
    folder, request, _ = create_node(
        tmp_path / "st-mary", name="st-mary", data=images, test_data=None, public_data=None
    )
    address = Address("127.0.0.1", study.port, study.path / "authority.crt")
    with started(study) as coordinator, control_of(coordinator) as control:
        take_in(study, control, folder, request)
        with relay_process(folder, threads=1) as node:
            assert until(lambda: is_connected(node)), node.log_tail()
            revoke(study, "st-mary")
            assert take_off(study.path, control) == ["st-mary"]
            code = node.wait(PATIENCE)  # at its next look for messages
            assert code is not None
            assert "was the key revoked" in str(explain_node_exit(code, node.log_tail(200)))
        with relay_process(folder, threads=1) as node:
            assert node.wait(PATIENCE) == 5
            assert "its key is not registered there (or was revoked)" in str(
                explain_node_exit(5, node.log_tail(200))
            )
        with pytest.raises(FederationError, match="register"):
            control.register_node(request.public_key.encode(), name="st-mary")  # nor by hand
        take_in(study, control, folder, rotate(folder, new_identity=True)[0])
        with relay_process(folder, threads=1) as node:
            assert until(lambda: is_connected(node)), node.log_tail()
        assert check_registration(address, folder.key).state is State.ok
    revoke(study, "st-mary")
    with started(study):  # the gateway is open only now
        assert check_registration(address, folder.key).state is State.failed
