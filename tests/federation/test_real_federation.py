"""A federation of real processes on loopback: coordinator, gateway, nodes with keys, TLS throughout.

One start-up serves all tests of this file (module fixture); they may run in any order.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from federation.coordinator.revocations import Revocation
from federation.doctor.checks import State
from federation.doctor.network import Address, check_answer
from federation.doctor.registration import check_registration, check_release
from federation.flower_processes.bundle import Bundle, bundle_from_folder
from federation.flower_processes.control import ControlClient, RunStatus
from federation.flower_processes.node import (
    NodeSettings,
    explain_node_exit,
    is_connected,
    node_process,
    supervised_node,
)
from federation.flower_processes.superlink import (
    Coordinator,
    create_coordinator_folder,
    find_superlink,
    start_coordinator,
)
from federation.provisioning import (
    create_authority,
    create_node_key,
    issue_server_certificate,
    public_key_fingerprint,
)
from federation.revocation import refuse, take_off
from federation.supervision import ManagedProcess, RestartedProcess, group_members
from instahide.errors import FederationError, InvalidInputError, RefusedError

pytestmark = [pytest.mark.federated, pytest.mark.timeout(280)]

ECHO_APP = Path(__file__).parent / "echo_app"
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0  # seconds, for machines with much else to do

# Loaded by every child from its module path: name look-ups are written down, and fail.
NO_NAMES = """
import os, socket
_real = socket.getaddrinfo
def _look_up(host, *rest, **more):
    text = host.decode() if isinstance(host, bytes) else host
    if text is None or text.replace(".", "").isdigit() or ":" in text:
        return _real(host, *rest, **more)
    with open(os.environ["NAME_LOOKUPS"], "a") as file:
        file.write(f"{text}\\n")
    raise socket.gaierror(socket.EAI_NONAME, "no names in this test")
socket.getaddrinfo = _look_up
socket.gethostbyname = lambda host: _look_up(host, 0)
"""


@dataclass
class Federation:
    """The running processes and what a test needs to talk to them."""

    root: Path
    coordinator: Coordinator
    control: ControlClient
    bundle: Bundle
    environment: dict[str, str]
    nodes: dict[str, RestartedProcess] = field(default_factory=dict)
    node_ids: dict[str, int] = field(default_factory=dict)

    def settings(self, name: str, **changes: Any) -> NodeSettings:
        folder = self.root / name
        values = {
            "name": name,
            "coordinator": f"127.0.0.1:{self.coordinator.gateway_port}",
            "authority": self.coordinator.folder.authority.certificate,
            "private_key": folder / "node.key",
            "state_folder": folder / "state",
            "client": "echo.client_app:app",
        }
        return NodeSettings(**(values | changes))  # type: ignore[arg-type]

    def node(self, name: str, **changes: Any) -> ManagedProcess:
        """A node's process, not started; its folder and key are made if they are not there."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        settings = self.settings(name, **changes)
        if not settings.private_key.exists():
            create_node_key(folder)
        (folder / "node.toml").write_text(settings.to_toml())
        return node_process(folder / "node.toml", extra=self.environment)

    def run(self, **settings: str | int | bool) -> tuple[RunStatus, list[dict[str, Any]]]:
        """Submit a run, wait for its end; its status and what the server app wrote down."""
        report = self.root / f"report-{time.monotonic_ns()}.jsonl"
        run_id = self.control.submit_run(self.bundle, {"report": str(report), **settings})
        assert until(lambda: self.control.run_status(run_id).is_finished)
        lines = report.read_text().splitlines() if report.exists() else []
        return self.control.run_status(run_id), [json.loads(line) for line in lines]


def until(condition: Callable[[], bool], within: float = PATIENCE) -> bool:
    deadline = time.monotonic() + within
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    return condition()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    root = tmp_path_factory.mktemp("federation")
    patch = root / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(NO_NAMES)
    environment = {
        "PYTHONPATH": os.pathsep.join(str(path) for path in (patch, ROOT, ECHO_APP)),
        "NAME_LOOKUPS": str(root / "lookups.txt"),
    }
    folder = create_coordinator_folder(root / "coordinator", names=["127.0.0.1", "localhost"])
    with pytest.MonkeyPatch.context() as patched:
        for key, value in environment.items():
            patched.setenv(key, value)
        coordinator = start_coordinator(folder, within=PATIENCE)
    with coordinator:
        control = ControlClient(find_superlink(folder), authority=folder.authority.certificate)
        running = Federation(root, coordinator, control, bundle_from_folder(ECHO_APP), environment)
        try:
            for name in ("north", "south"):
                process = running.node(name)
                running.node_ids[name] = control.register_node(root / name / "node.pub", name=name)
                running.nodes[name] = supervised_node(process).start()
            for node in running.nodes.values():
                assert until(lambda process=node.process: is_connected(process)), node.process.log_tail()
            yield running
        finally:
            for node in running.nodes.values():
                node.stop()
            control.close()
    groups = [process.pid for process in coordinator.processes]
    groups += [node.process.pid for node in running.nodes.values()]
    assert [member for group in groups for member in group_members(group)] == []  # nothing is left


FinishedRun = tuple[RunStatus, list[dict[str, Any]], dict[int, int]]


@pytest.fixture(scope="module")
def finished_run(federation: Federation) -> FinishedRun:
    """A run of four rounds, in the first of which the clients raise; node id to process id."""
    processes = {federation.node_ids[name]: node.process.pid for name, node in federation.nodes.items()}
    return *federation.run(**{"num-server-rounds": 4, "first-round": -1}), processes


def test_a_run_completes_over_tls_with_node_keys(federation: Federation, finished_run: FinishedRun) -> None:
    status, rounds, _ = finished_run
    assert status.is_completed
    assert status.exit_code == 0
    assert [entry["value"] for entry in rounds[1:]] == [1.0, 2.0, 3.0]
    for entry in rounds[1:]:
        assert {reply["node"] for reply in entry["replies"]} == set(federation.node_ids.values())


def test_messages_are_answered_inside_the_node_by_locally_installed_code(
    federation: Federation, finished_run: FinishedRun
) -> None:
    _, (_, *rounds), processes = finished_run
    for reply in (reply for entry in rounds for reply in entry["replies"]):
        assert reply["process"] == processes[reply["node"]]
        assert reply["site"]["code"] == str(ECHO_APP / "echo" / "client_app.py")
        assert reply["site"]["bundle-sha256"] == federation.bundle.sha256
        assert federation.node_ids[reply["site"]["site-name"]] == reply["node"]


def test_a_failing_run_has_a_failing_exit_code_and_says_why(federation: Federation) -> None:
    status, rounds = federation.run(fail=True)
    assert (status.status, status.exit_code, rounds) == ("finished:failed", 1, [])
    assert "asked to fail" in status.details
    assert "asked to fail" in "".join(federation.control.follow_log(status.run_id))


def test_a_client_that_raises_tells_the_coordinator_its_type_and_not_its_text(
    federation: Federation, finished_run: FinishedRun
) -> None:
    _, rounds, _ = finished_run
    errors = [reply["error"] for reply in rounds[0]["replies"]]
    assert errors == ["the site's client raised ValueError"] * 2
    assert all(node.process.is_running for node in federation.nodes.values())


def test_a_run_can_be_stopped(federation: Federation) -> None:
    report = federation.root / "stopped.jsonl"
    run_id = federation.control.submit_run(
        federation.bundle, {"report": str(report), "num-server-rounds": 10_000}
    )
    assert until(report.exists)
    assert federation.control.stop_run(run_id)
    assert until(lambda: federation.control.run_status(run_id).is_finished)
    assert federation.control.run_status(run_id).exit_code == 130


def test_only_the_fleet_interface_is_reachable_through_the_gateway(federation: Federation) -> None:
    context = ssl.create_default_context(cafile=str(federation.coordinator.folder.authority.certificate))

    def status(path: str, method: str = "POST") -> int:
        url = f"https://127.0.0.1:{federation.coordinator.gateway_port}{path}"
        request = urllib.request.Request(url, data=b"" if method == "POST" else None, method=method)
        request.add_header("content-type", PROTOBUF_MEDIA_TYPE)
        try:
            with urllib.request.urlopen(request, context=context, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert status("/health", "GET") == 200
    for path in ("/v1/control/list-runs", "/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"):
        assert status(path) == 403
    assert status("/v1/fleet/pull-messages") == 401  # passed on, and refused without a key
    assert federation.control.list_nodes()  # what the gateway shields is open to whoever reaches it


def test_the_superlink_listens_on_loopback_only(federation: Federation) -> None:
    for process in federation.coordinator.processes:
        for connection in psutil.Process(process.pid).net_connections("inet"):
            assert connection.laddr.ip == "127.0.0.1"


def test_an_unregistered_key_is_refused_and_the_reason_is_reported(federation: Federation) -> None:
    reasons: list[str | None] = []
    stranger = supervised_node(
        federation.node("stranger"),
        on_exit=lambda status, reason, wait: reasons.append(f"{status}: {reason}"),
    )
    with stranger:
        assert until(lambda: bool(reasons))
    assert reasons[0] is not None
    assert reasons[0].startswith("5: the coordinator refused this node: its key is not registered")


def test_the_doctor_asks_for_a_key_without_announcing_the_node(
    federation: Federation, tmp_path: Path
) -> None:
    folder = federation.coordinator.folder
    address = Address("127.0.0.1", federation.coordinator.gateway_port, folder.authority.certificate)
    key = create_node_key(tmp_path)
    assert check_registration(address, key.private).state is State.failed
    node_id = federation.control.register_node(key.public, name="asking")
    for _ in range(2):
        assert check_registration(address, key.private).state is State.ok
    assert {node.node_id: node.status for node in federation.control.list_nodes()}[node_id] == "registered"
    # A node that is up stays up, and is known.
    assert check_registration(address, federation.root / "north" / "node.key").state is State.ok
    online = {node.name: node.status for node in federation.control.list_nodes()}
    assert online["north"] == "online"
    assert check_release(address, key.private).state is State.ok
    assert check_answer(address).state is State.ok


def test_a_connected_node_whose_key_is_revoked_is_cut_off_and_stays_out(federation: Federation) -> None:
    """Coming back with new keys, and a coordinator that was down meanwhile: ``test_revoked_nodes``."""
    folder = federation.coordinator.folder
    process = federation.node("leaving")
    key = federation.root / "leaving" / "node.key"
    node_id = federation.control.register_node(key.with_suffix(".pub"), name="leaving")
    with process:
        assert until(lambda: is_connected(process)), process.log_tail()
        fingerprint = public_key_fingerprint(key.with_suffix(".pub"))
        entry = {
            "node_id": node_id,
            "name": "leaving",
            "node_key": fingerprint,
            "identity_key": "",
            "time": "",
        }
        refuse(folder.path, [Revocation(**entry)])  # type: ignore[arg-type]
        assert take_off(folder.path, federation.control) == ["leaving"]
        code = process.wait(PATIENCE)  # at its next look for messages
        assert code is not None
        assert "was the key revoked" in str(explain_node_exit(code, process.log_tail(200)))
    address = Address("127.0.0.1", federation.coordinator.gateway_port, folder.authority.certificate)
    assert check_registration(address, key).state is State.failed
    with pytest.raises(FederationError, match="register leaving"):
        federation.control.register_node(key.with_suffix(".pub"), name="leaving")


def test_a_coordinator_of_another_authority_is_not_trusted(federation: Federation, tmp_path: Path) -> None:
    other = create_authority(tmp_path)
    with federation.node("misled", authority=other.certificate) as node:
        assert node.wait(PATIENCE) == 5
    reason = explain_node_exit(5, node.log_tail(200))
    assert reason is not None
    assert "not signed by this federation's authority" in reason


def test_an_expired_coordinator_certificate_is_refused(federation: Federation, tmp_path: Path) -> None:
    """A TLS listener with an expired certificate of the right authority stands in for the gateway."""
    authority = federation.coordinator.folder.authority
    yesterday = datetime.now(UTC) - timedelta(days=1)
    expired = issue_server_certificate(authority, tmp_path, names=["127.0.0.1"], starting=yesterday, days=0.5)
    program = (
        "import socket, ssl, sys\n"
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); context.load_cert_chain(*sys.argv[1:3])\n"
        "listener = socket.create_server(('127.0.0.1', 0)); print(listener.getsockname()[1], flush=True)\n"
        "while True:\n"
        "    try: context.wrap_socket(listener.accept()[0], server_side=True).close()\n"
        "    except OSError: pass\n"
    )
    command = [sys.executable, "-c", program, expired.certificate, expired.key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with federation.node("late", coordinator=f"127.0.0.1:{port}") as node:
            assert node.wait(PATIENCE) == 5
        server.kill()
    reason = explain_node_exit(5, node.log_tail(200))
    assert reason is not None
    assert "has expired" in reason


def test_a_killed_node_comes_back_by_itself(federation: Federation) -> None:
    """Gracefully stopped first, so that the coordinator re-admits it at once; see the slow test."""
    node = federation.nodes["south"]
    before, restarts = node.process.pid, node.restarts
    os.kill(before, signal.SIGTERM)
    assert until(lambda: node.restarts > restarts and is_connected(node.process))
    assert node.process.pid != before
    assert node.last_exit_code == 0
    assert group_members(before) == []
    assert {record.name for record in federation.control.list_nodes() if record.is_online} >= {
        "north",
        "south",
    }


@pytest.mark.slow
def test_a_node_killed_with_sigkill_is_readmitted_after_back_off(federation: Federation) -> None:
    node = federation.nodes["north"]
    restarts = node.restarts
    os.kill(node.process.pid, signal.SIGKILL)
    assert until(lambda: node.restarts > restarts and is_connected(node.process), within=200)
    assert federation.run(**{"num-server-rounds": 1})[0].is_completed


def test_nodes_are_listed_under_their_names_and_registered_once(federation: Federation) -> None:
    nodes = {node.name: node for node in federation.control.list_nodes()}
    assert {name: nodes[name].node_id for name in ("north", "south")} == federation.node_ids
    again = federation.control.register_node(federation.root / "north" / "node.pub", name="north")
    assert again == federation.node_ids["north"]


def test_a_second_start_is_refused_and_the_running_one_is_found(federation: Federation) -> None:
    folder = federation.coordinator.folder
    assert find_superlink(folder) == federation.coordinator.superlink_address
    with pytest.raises(RefusedError, match="already up"):
        start_coordinator(folder)


def test_a_superlink_that_was_not_started_here_is_refused(federation: Federation, tmp_path: Path) -> None:
    elsewhere = create_coordinator_folder(tmp_path / "elsewhere", names=["127.0.0.1"])
    with pytest.raises(InvalidInputError, match="no coordinator is running"):
        find_superlink(elsewhere)
    record = json.loads(federation.coordinator.folder.instance.read_text())
    elsewhere.instance.write_text(json.dumps(record))  # points at a real SuperLink, of another authority
    with pytest.raises(RefusedError, match="not our SuperLink"):
        find_superlink(elsewhere)
    elsewhere.instance.write_text(json.dumps({**record, "started": 1.0}))  # a reused process number
    with pytest.raises(FederationError, match="is gone"):
        find_superlink(elsewhere)


def test_secrets_and_database_are_private_files(federation: Federation) -> None:
    folder = federation.coordinator.folder
    for path in (folder.database, folder.secret, folder.authority.key, folder.log("superlink")):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.usefixtures("finished_run")
def test_no_process_of_ours_looks_up_a_name(federation: Federation) -> None:
    look_ups = Path(federation.environment["NAME_LOOKUPS"])
    assert not look_ups.exists(), look_ups.read_text()
    probe = [
        sys.executable,
        "-c",
        "import socket\ntry: socket.getaddrinfo('example.org', 1)\nexcept OSError: pass",
    ]
    counted = federation.root / "probe.txt"
    environment = {**os.environ, **federation.environment, "NAME_LOOKUPS": str(counted)}
    subprocess.run(probe, env=environment, check=True)
    assert counted.read_text() == "example.org\n"  # the counter does count
