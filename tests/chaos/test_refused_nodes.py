"""Nodes and releases that do not belong: each is refused with a reason, and the others go on."""

from __future__ import annotations

import base64
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from federation.config import RunConfig
from federation.flower_processes.bundle import Bundle, app_description, bundle_from_files, bundled_files
from federation.flower_processes.node import explain_node_exit, is_connected, node_process
from federation.joining import JoinAnswer
from federation.messages import PROTOCOL_VERSION
from federation.node_folder import NodeFolder, join
from federation.provisioning import issue_server_certificate
from federation.supervision import ManagedProcess

from ..federation.command_line import until
from .real_federation import PATIENCE, RealFederation, make_node, take_in
from .scoreboard import Recorder, Timer

pytestmark = [pytest.mark.federated, pytest.mark.nightly, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Dora:
    """A fourth hospital, admitted, with no process of its own; it meets each fault in turn."""

    folder: NodeFolder
    node_id: int

    @contextmanager
    def node(self, extra: Mapping[str, str] | None = None) -> Iterator[ManagedProcess]:
        with node_process(self.folder.node_config, num_threads=1, extra=extra) as process:
            yield process

    def reason(self, extra: Mapping[str, str] | None = None) -> str:
        """Why its node was refused; fails if it was not."""
        with self.node(extra) as process:
            ended = until(lambda: not process.is_running or is_connected(process), PATIENCE)
            assert ended, process.log_tail()
            assert not is_connected(process), "it was let in"
            return str(explain_node_exit(process.exit_code or 0, process.log_tail(200)))


@pytest.fixture(scope="module")
def dora(federation: RealFederation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dora]:
    folder, request = make_node(tmp_path_factory.mktemp("dora"), "dora", 3)
    with take_in(federation, folder, request):
        record = federation.control.find_node(request.fingerprint)
        assert record is not None
        yield Dora(folder, record.node_id)


# --- keys -------------------------------------------------------------------------------------------


def test_a_key_nobody_registered_is_refused(
    federation: RealFederation, tmp_path: Path, chaos: Recorder
) -> None:
    folder, request = make_node(tmp_path, "stranger", 4)
    answer = JoinAnswer(
        name="stranger",
        coordinator=federation.study.address,
        authority=(federation.study.path / "authority.crt").read_text(),
        identity_key=request.identity_key,
        fingerprint=request.fingerprint,
    )
    join(folder, answer)
    with chaos.attempt("keys", "node key not registered"):
        assert "its key is not registered there" in Dora(folder, 0).reason()


def test_a_second_node_with_a_copied_key_is_refused_and_the_first_stays(
    federation: RealFederation, tmp_path: Path, chaos: Recorder
) -> None:
    anna = federation.hospitals["anna"].folder
    for name in ("node.key", "node.pub", "authority.crt"):
        shutil.copy(anna.path / name, tmp_path / name)
    text = anna.node_config.read_text().replace(str(anna.path), str(tmp_path))
    (tmp_path / "node.toml").write_text(text)
    with chaos.attempt("keys", "node key copied to a second machine"):
        assert "refused this node" in Dora(NodeFolder(tmp_path), 0).reason()
        assert "anna" in federation.online()


def test_an_authentication_that_is_replayed_late_or_signed_by_another_is_refused(
    federation: RealFederation, dora: Dora, chaos: Recorder
) -> None:
    """Flower signs the time of each call, to be used within five minutes; TLS keeps it from listeners."""
    key = serialization.load_ssh_private_key(dora.folder.key.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    body = SendNodeHeartbeatRequest(node=Node(node_id=dora.node_id), heartbeat_interval=30.0)

    def call(signer: ec.EllipticCurvePrivateKey, age: float) -> int:
        stamp = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
        signature = signer.sign(stamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        headers = {
            FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public).decode(),
            FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode(),
            TIMESTAMP_HEADER: stamp,
            "content-type": PROTOBUF_MEDIA_TYPE,
        }
        context = ssl.create_default_context(cafile=str(federation.folder.authority.certificate))
        url = f"https://{federation.study.address}/v1/fleet/send-node-heartbeat"
        return httpx.post(url, content=body.SerializeToString(), headers=headers, verify=context).status_code

    with chaos.attempt("keys", "authentication replayed after six minutes, or forged"):
        assert call(key, age=1.0) == 200  # the call as such is right
        assert call(key, age=360.0) == 401
        assert call(ec.generate_private_key(ec.SECP384R1()), age=1.0) == 401


def test_a_revoked_key_is_cut_off_and_the_run_goes_on(
    federation: RealFederation, tmp_path: Path, chaos: Recorder
) -> None:
    folder, request = make_node(tmp_path, "emil", 5)
    with take_in(federation, folder, request):
        record = federation.control.find_node(request.fingerprint)
        assert record is not None
        emil, name = Dora(folder, record.node_id), "revoked"
        with chaos.attempt("keys", "node key revoked in mid-run") as attempt, emil.node() as process:
            assert until(lambda: is_connected(process), PATIENCE), process.log_tail()
            run_id = federation.start_run(name, num_server_rounds=10_000, evaluate=False)
            try:
                federation.wait_for(name, "round-finished", 1)
                federation.control.unregister_node(emil.node_id)
                timer, done = Timer(), len(federation.events(name, "round-finished"))
                federation.wait_for(name, "round-finished", done + 2)
                attempt.seconds = timer.seconds
                attempt.rounds_lost = len(federation.events(name, "round-failed"))
                assert until(lambda: not process.is_running, PATIENCE)
                assert "emil" not in {record.name for record in federation.control.list_nodes()}
            finally:
                federation.stop(run_id, name)
        assert "its key is not registered there" in emil.reason()


# --- clocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3600, "compare the clocks"),
        (86_400, "compare the clocks"),
        (-3600, "clock"),
        (-86_400, "not valid yet; compare the two machines' clocks"),
        (400 * 86_400, "expired"),
    ],
)
def test_a_node_whose_clock_is_far_off_is_told_so(
    seconds: int, words: str, dora: Dora, faults: Path, chaos: Recorder
) -> None:
    """The whole process lives under the other clock, TLS included."""
    with chaos.attempt("clock skew", f"node {seconds / 3600:+.0f} h"):
        reason = dora.reason({"LD_PRELOAD": str(faults), "SHIFT_CLOCK": str(seconds)})
        assert words in reason


@pytest.mark.usefixtures("federation")
def test_a_node_two_minutes_behind_is_let_in(dora: Dora, faults: Path, chaos: Recorder) -> None:
    with (
        chaos.attempt("clock skew", "node -2 min"),
        dora.node({"LD_PRELOAD": str(faults), "SHIFT_CLOCK": "-120"}) as process,
    ):
        assert until(lambda: is_connected(process) or not process.is_running, PATIENCE)
        assert is_connected(process), process.log_tail()


def test_an_expired_gateway_certificate_is_named(
    federation: RealFederation, dora: Dora, tmp_path: Path, chaos: Recorder
) -> None:
    """A TLS listener of the right authority stands in for the gateway."""
    past = datetime.now(UTC) - timedelta(days=2)
    authority = federation.folder.authority
    shown = issue_server_certificate(authority, tmp_path, names=["127.0.0.1"], starting=past, days=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.certificate, shown.key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with suppress(OSError):
                    context.wrap_socket(connection, server_side=True).close()

    threading.Thread(target=serve, daemon=True).start()
    text = dora.folder.node_config.read_text()
    lines = [line for line in text.splitlines() if not line.startswith("coordinator = ")]
    lines.append(f'coordinator = "127.0.0.1:{listener.getsockname()[1]}"')
    try:
        dora.folder.node_config.write_text("\n".join(lines) + "\n")
        with chaos.attempt("keys", "gateway certificate expired"):
            assert "certificate has expired" in dora.reason()
    finally:
        dora.folder.node_config.write_text(text)
        listener.close()


# --- versions ---------------------------------------------------------------------------------------


def bundle_of_tomorrow() -> Bundle:
    """Our app as a release with the next protocol version would bring it."""
    package = ROOT / "federation"
    files: dict[str, bytes | Path] = {f"federation/{name}": package / name for name in bundled_files(package)}
    files["pyproject.toml"] = _tomorrow(app_description(RunConfig().to_run_config()))
    files["LICENSE"] = ROOT / "LICENSE"
    text = (package / "messages.py").read_text()
    today, tomorrow = (f"PROTOCOL_VERSION = {PROTOCOL_VERSION + more}\n" for more in (0, 1))
    assert today in text
    files["federation/messages.py"] = text.replace(today, tomorrow).encode()
    return bundle_from_files(files)


def _tomorrow(table: dict[str, Any]) -> bytes:
    import tomli_w

    return tomli_w.dumps(table).encode()


def test_a_coordinator_with_the_next_protocol_version_is_refused_by_every_site(
    federation: RealFederation, chaos: Recorder
) -> None:
    name = "next-protocol-version"
    federation.wait_until_online()
    with chaos.attempt("versions", "coordinator speaks the next protocol version"):
        run_id = federation.start_run(name, bundle=bundle_of_tomorrow(), max_failed_rounds=0)
        status = federation.wait_for_end(run_id)
        assert not status.is_completed
        refused = federation.events(name, "site-refused")
        assert refused, federation.events(name)
        wanted = f"the request speaks protocol version {PROTOCOL_VERSION + 1}, this side {PROTOCOL_VERSION}"
        assert {event["reason"] for event in refused} == {wanted}
        assert all("same release" in event["hint"] for event in refused)
        assert wanted in federation.events(name, "run-failed")[-1]["reason"]
