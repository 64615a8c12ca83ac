"""The health check of the containers: yes only where the service would serve, in words where not."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from federation.flower_processes.superlink import CoordinatorFolder
from federation.provisioning import issue_server_certificate
from federation.study import create_study
from federation.supervision import free_port

from .deploy_files import DEPLOY

PROGRAM = DEPLOY / "container" / "instahide-health"


def health(folder: Path) -> tuple[int, str]:
    """Exit code and reason, run with nothing of ours to import, as a program of its own."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", PROGRAM, folder], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert said["healthy"] == (done.returncode == 0)
    return done.returncode, said.get("reason", "")


@pytest.fixture
def study(tmp_path: Path) -> CoordinatorFolder:
    names = ("fl.example.org", "coordinator")
    made = create_study(tmp_path / "study", names=names, listen="0.0.0.0", port=free_port())
    return CoordinatorFolder(made.path)


@contextmanager
def gateway(folder: CoordinatorFolder, status: int) -> Iterator[None]:
    """One TLS answer with this status on the study's port."""
    import tomllib

    port = tomllib.loads((folder.path / "study.toml").read_text())["port"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.gateway.certificate, folder.gateway.key)
    with socket.create_server(("127.0.0.1", port)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            try:
                with plain, context.wrap_socket(plain, server_side=True) as secured:
                    asked = secured.recv(1000)
                    assert asked.startswith(b"GET /health HTTP/1.1\r\n")
                    secured.sendall(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
            except ssl.SSLError:  # the check turned our certificate down
                pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(5.0)


def test_a_coordinator_is_healthy_when_its_gateway_passes_a_good_answer_on(study: CoordinatorFolder) -> None:
    with gateway(study, 200):
        assert health(study.path) == (0, "")


def test_a_gateway_without_its_superlink_is_not(study: CoordinatorFolder) -> None:
    with gateway(study, 502):
        code, reason = health(study.path)
    assert code == 1
    assert "answered 502" in reason


def test_a_certificate_that_hospitals_would_refuse_is_not(study: CoordinatorFolder) -> None:
    for path in (study.gateway.certificate, study.gateway.key):
        path.unlink()
    issue_server_certificate(study.authority, study.path, names=["other.example.org"], file_name="gateway")
    with gateway(study, 200):
        code, reason = health(study.path)
    assert code == 1
    assert "fl.example.org" in reason


def test_nothing_on_the_port_is_not(study: CoordinatorFolder) -> None:
    code, reason = health(study.path)
    assert code == 1
    assert "refused" in reason


@pytest.mark.parametrize("role", ["worker", "relay"])
def test_a_site_is_healthy_when_its_worker_takes_connections(tmp_path: Path, role: str) -> None:
    path = tmp_path / "worker.sock"
    if role == "worker":
        (tmp_path / "worker.toml").write_text('socket = "worker.sock"\nready-file = "ready.json"\n')
        assert "not read its images" in health(tmp_path)[1]
        (tmp_path / "ready.json").write_text("{}")
    else:
        (tmp_path / "node.toml").write_text(f'worker-socket = "{path}"\n')
    assert health(tmp_path)[0] == 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
        assert health(tmp_path) == (0, "")
    assert "refused" in health(tmp_path)[1]  # the socket of a worker that is gone


def test_an_empty_folder_and_a_damaged_file_are_said(tmp_path: Path) -> None:
    assert "neither a study nor a node" in health(tmp_path)[1]
    (tmp_path / "study.toml").write_text("names = [")
    assert health(tmp_path)[0] == 1
