"""The coordinator's server side: SuperLink, SuperExec and gateway, started as one and stopped as one.

A coordinator folder (mode 0700) holds, after ``create_coordinator_folder``::

    authority.crt .key     the federation's certificate authority
    superlink.crt .key     shown by the SuperLink, for loopback only
    gateway.crt .key       shown to the hospitals, for the names they use
    gateway-authority.crt  only where that certificate is from an authority of the operator's own
    superexec.secret       32 bytes: who may fetch ServerApp tasks
    state.db               Flower's database: nodes, runs, messages under way
    instance.json          which processes are ours (pid, start time, port, certificate)
    flower/  logs/         Flower's own folder; one log file a process

The SuperLink listens on loopback with TLS, node authentication and process isolation, so runs
survive its restart. ``find_superlink`` connects only to a SuperLink that this folder's
``start_coordinator`` started: same process (pid *and* start time), same certificate.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from instahide.atomic import atomic_write_text
from instahide.errors import FederationError, InvalidInputError, RefusedError

from ..coordinator.revocations import REVOCATIONS, read_revocations
from ..external_certificate import ExternalCertificate, gateway_authority
from ..gateway import GatewaySettings
from ..private_files import read_private_file
from ..provisioning import (
    CertificateFiles,
    certificate_fingerprint,
    create_authority,
    create_secret,
    issue_server_certificate,
)
from ..revocation import take_off
from ..supervision import ManagedProcess, free_port
from .environment import flower_environment, program

LOOPBACK = "127.0.0.1"
START_SECONDS = 90.0
ATTEMPTS = 3  # another program may take a port between our choosing it and using it
CLASH = "address already in use"


@dataclass(frozen=True)
class CoordinatorFolder:
    """The files of one coordinator, by name."""

    path: Path

    @property
    def authority(self) -> CertificateFiles:
        return CertificateFiles(self.path / "authority.crt", self.path / "authority.key")

    @property
    def superlink(self) -> CertificateFiles:
        return CertificateFiles(self.path / "superlink.crt", self.path / "superlink.key")

    @property
    def gateway(self) -> CertificateFiles:
        return CertificateFiles(self.path / "gateway.crt", self.path / "gateway.key")

    @property
    def gateway_authority(self) -> Path:
        """What the hospitals trust the gateway by: the study's authority, or the operator's own."""
        return gateway_authority(self.path, self.authority.certificate)

    @property
    def secret(self) -> Path:
        return self.path / "superexec.secret"

    @property
    def database(self) -> Path:
        return self.path / "state.db"

    @property
    def instance(self) -> Path:
        return self.path / "instance.json"

    @property
    def gateway_settings(self) -> Path:
        return self.path / "gateway.toml"

    @property
    def flower_home(self) -> Path:
        return self.path / "flower"

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"


def create_coordinator_folder(
    path: Path, *, names: Sequence[str], external: ExternalCertificate | None = None
) -> CoordinatorFolder:
    """Make keys, certificates and secret for a coordinator the hospitals reach under ``names``.

    With ``external`` the gateway's certificate is that one. Raises RefusedError if the folder
    already holds an authority, InvalidInputError for a certificate that would not serve the names.
    """
    if external is not None:
        external.check(names)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    folder = CoordinatorFolder(path)
    authority = create_authority(path)
    issue_server_certificate(authority, path, names=[LOOPBACK, "localhost"], file_name="superlink")
    if external is None:
        issue_server_certificate(authority, path, names=names, file_name="gateway")
    else:
        external.write(path)
        external.write_authority(path)
    create_secret(folder.secret)
    return folder


@dataclass(frozen=True)
class Coordinator:
    """A running coordinator: its three processes and where they listen."""

    folder: CoordinatorFolder
    superlink: ManagedProcess
    superexec: ManagedProcess
    gateway: ManagedProcess
    superlink_port: int
    gateway_port: int

    @property
    def superlink_address(self) -> str:
        """For the control interface, on this machine only."""
        return f"{LOOPBACK}:{self.superlink_port}"

    @property
    def processes(self) -> tuple[ManagedProcess, ...]:
        return (self.gateway, self.superexec, self.superlink)

    def check(self) -> None:
        """Raise FederationError, with its log's end, if one of the processes has ended."""
        for process in self.processes:
            if not process.is_running:
                raise FederationError(
                    f"the {process.name} ended with status {process.exit_code}:\n{process.log_tail()}",
                    hint=f"see {process.log_path}, then start the coordinator again",
                )

    def stop(self) -> None:
        """Stop all three, the gateway first; the database stays for the next start."""
        for process in self.processes:
            process.stop()
        self.folder.instance.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_coordinator(
    folder: CoordinatorFolder,
    *,
    gateway_host: str = LOOPBACK,
    gateway_port: int | None = None,
    num_threads: int | None = None,
    within: float = START_SECONDS,
) -> Coordinator:
    """Start SuperLink, SuperExec and gateway and wait until the gateway answers for the SuperLink.

    ``gateway_port=None`` takes a free one. Raises RefusedError if this folder's SuperLink is
    already up or a secret is not private, FederationError (with the log's end) if a process does not come up.
    """
    _refuse_second_start(folder)
    _check_secrets(folder)
    environment = flower_environment(folder.flower_home, num_threads=num_threads)
    for attempt in range(ATTEMPTS):
        superlink_port, listening = free_port(), gateway_port or free_port(gateway_host)
        _write_gateway_settings(folder, gateway_host, listening, superlink_port)
        coordinator = Coordinator(
            folder,
            _superlink_process(folder, superlink_port, environment),
            _superexec_process(folder, superlink_port, environment),
            _gateway_process(folder, environment),
            superlink_port,
            listening,
        )
        try:
            return _bring_up(coordinator, gateway_host, within)
        except FederationError:
            clashed = any(CLASH in process.log_tail(200).lower() for process in coordinator.processes)
            coordinator.stop()
            if not clashed or attempt == ATTEMPTS - 1:
                raise
        except BaseException:  # Ctrl-C while waiting: leave nothing behind
            coordinator.stop()
            raise
    raise AssertionError("unreachable")


def _bring_up(coordinator: Coordinator, gateway_host: str, within: float) -> Coordinator:
    """Start the three at once (their imports take most of the time) and wait for each.

    Where keys were revoked, the gateway waits until the SuperLink has forgotten them.
    """
    folder = coordinator.folder
    revoked = bool(read_revocations(folder.path / REVOCATIONS))
    first = (coordinator.superlink, coordinator.superexec)
    for process in first if revoked else (*first, coordinator.gateway):
        process.start()
    _record_instance(folder, coordinator.superlink, coordinator.superlink_port)
    coordinator.superlink.wait_until(
        lambda: is_healthy(LOOPBACK, coordinator.superlink_port, folder.authority.certificate), within=within
    )
    if revoked:
        _take_off_revoked(coordinator)
        coordinator.gateway.start()
    reachable = {"0.0.0.0": LOOPBACK, "": LOOPBACK, "::": "::1"}.get(gateway_host, gateway_host)  # noqa: S104
    coordinator.gateway.wait_until(
        lambda: is_healthy(reachable, coordinator.gateway_port, folder.gateway_authority, check_name=False),
        within=within,
    )
    coordinator.check()
    return coordinator


def _check_secrets(folder: CoordinatorFolder) -> None:
    """Refuse what others may read, or a link, before a server reads it by its path."""
    for path in (folder.superlink.key, folder.gateway.key, folder.secret):
        read_private_file(path, what="the secret", restore="see `instahide coordinator doctor STUDY`")


def _take_off_revoked(coordinator: Coordinator) -> None:
    from .control import ControlClient  # it imports Flower

    authority = coordinator.folder.authority.certificate
    with ControlClient(coordinator.superlink_address, authority=authority) as control:
        take_off(coordinator.folder.path, control)


def _superlink_process(folder: CoordinatorFolder, port: int, environment: dict[str, str]) -> ManagedProcess:
    command = [
        program("flower-superlink"),
        *("--ssl-ca-certfile", str(folder.authority.certificate)),
        *("--ssl-certfile", str(folder.superlink.certificate)),
        *("--ssl-keyfile", str(folder.superlink.key)),
        *("--host", LOOPBACK, "--port", str(port)),
        "--enable-supernode-auth",
        *("--database", str(folder.database)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(folder.secret)),
        "--disable-runtime-dependency-installation",
    ]
    return ManagedProcess(
        "superlink",
        command,
        log_path=folder.log("superlink"),
        environment=environment,
        stop_seconds=3.0,  # it waits for idle connections; its database is safe at any time
    )


def _superexec_process(folder: CoordinatorFolder, port: int, environment: dict[str, str]) -> ManagedProcess:
    command = [
        program("flower-superexec"),
        *("--runtime-api-address", f"{LOOPBACK}:{port}"),
        *("--root-certificates", str(folder.authority.certificate)),
        *("--superexec-auth-secret-file", str(folder.secret)),
    ]
    return ManagedProcess("superexec", command, log_path=folder.log("superexec"), environment=environment)


def _gateway_process(folder: CoordinatorFolder, environment: dict[str, str]) -> ManagedProcess:
    command = [sys.executable, "-m", "federation.gateway", "--config", str(folder.gateway_settings)]
    return ManagedProcess("gateway", command, log_path=folder.log("gateway"), environment=environment)


def _write_gateway_settings(folder: CoordinatorFolder, host: str, port: int, superlink_port: int) -> None:
    settings = GatewaySettings(
        host=host,
        port=port,
        certificate=folder.gateway.certificate,
        key=folder.gateway.key,
        upstream=f"{LOOPBACK}:{superlink_port}",
        authority=folder.authority.certificate,
    )
    atomic_write_text(folder.gateway_settings, settings.to_toml(), mode=0o600)


def is_healthy(host: str, port: int, authority: Path, *, check_name: bool = True) -> bool:
    """Whether ``GET /health`` over TLS verified against ``authority`` answers 200."""
    try:
        with _verified(host, port, authority, check_name=check_name) as connection:
            connection.sendall(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return b" 200 " in connection.recv(64)
    except (OSError, ssl.SSLError):
        return False


def _verified(host: str, port: int, authority: Path, *, check_name: bool = True) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(authority))
    context.check_hostname = check_name
    connection = socket.create_connection((host, port), timeout=3.0)
    try:
        return context.wrap_socket(connection, server_hostname=host)
    except BaseException:
        connection.close()
        raise


def _record_instance(folder: CoordinatorFolder, superlink: ManagedProcess, port: int) -> None:
    record = {
        "pid": superlink.pid,
        "started": psutil.Process(superlink.pid).create_time(),
        "port": port,
        "certificate-sha256": certificate_fingerprint(folder.superlink.certificate),
        "recorded": time.time(),
    }
    atomic_write_text(folder.instance, json.dumps(record, indent=2) + "\n", mode=0o600)


def find_superlink(folder: CoordinatorFolder) -> str:
    """Address of this folder's running SuperLink, ``host:port``.

    Raises InvalidInputError if none was started here, FederationError if it is gone, and
    RefusedError if something else answers in its place.
    """
    try:
        record = json.loads(folder.instance.read_text(encoding="utf-8"))
        pid, started, port = int(record["pid"]), float(record["started"]), int(record["port"])
        expected = str(record["certificate-sha256"])
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"no coordinator is running in {folder.path}", hint="start it with `instahide coordinator start`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(
            f"{folder.instance} is damaged", hint="stop the coordinator's processes and delete the file"
        ) from error
    if not _is_same_process(pid, started):
        raise FederationError(
            f"the SuperLink of {folder.path} (process {pid}) is gone",
            hint="start it again with `instahide coordinator start`; its runs and nodes are kept",
        )
    try:
        with _verified(LOOPBACK, port, folder.authority.certificate) as connection:
            shown = certificate_fingerprint(connection.getpeercert(binary_form=True) or b"")
    except ssl.SSLError as error:
        raise RefusedError(
            f"what answers on port {port} is not our SuperLink: {error}",
            hint="find out which program that is",
        ) from error
    except OSError as error:
        raise FederationError(f"our SuperLink does not answer: {error}", hint="see its log") from error
    if shown != expected:
        raise RefusedError(
            f"what answers on port {port} shows another certificate than the SuperLink we started",
            hint="find out which program that is, then start the coordinator again",
        )
    return f"{LOOPBACK}:{port}"


def _is_same_process(pid: int, started: float) -> bool:
    """The process still runs and is the one we recorded, not a later one with its number."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(abs(process.create_time() - started) < 1.0)
    except psutil.NoSuchProcess:
        return False


def _refuse_second_start(folder: CoordinatorFolder) -> None:
    if not folder.secret.is_file():
        raise InvalidInputError(
            f"{folder.path} is not a coordinator's folder", hint="make one with `instahide coordinator init`"
        )
    if not folder.instance.is_file():
        return
    try:
        address = find_superlink(folder)
    except FederationError:
        folder.instance.unlink(missing_ok=True)  # left by a coordinator that was killed
        return
    raise RefusedError(f"a SuperLink of this folder is already up at {address}", hint="stop it first")
