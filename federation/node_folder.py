"""The hospital's node folder: key, policy, data settings, and what it needs to reach the coordinator.

st-mary/
  node.key node.pub          the node's key pair; the private half never leaves
  identity.key               the site's identity key, which signs its audit log; never leaves
  policy.toml                what a coordinator may ask of this site; yours to edit
  worker.toml                where images and state are (the site worker's settings)
  st-mary.request.json       to be sent to the coordinator
  authority.crt coordinator.pub node.toml join.number   written by `node join` from its answer
  node.next.key ...          new keys that wait for the coordinator's answer (`node_rotation`)
  state/                     ledger, registration, plans, audit log, logs, socket
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instahide.atomic import atomic_write_bytes, atomic_write_text, nothing_left_on_error
from instahide.errors import InvalidInputError, RefusedError

from .flower_processes.environment import flower_environment
from .flower_processes.node import NodeSettings, node_process
from .identity import IDENTITY_FILE, load_or_create_identity
from .joining import JoinAnswer, JoinRequest
from .node_request import write_node_request
from .provisioning import create_node_key, public_key_fingerprint
from .site.policy import write_default_policy
from .supervision import ManagedProcess

READY_SECONDS = 120.0


@dataclass(frozen=True)
class NodeFolder:
    """The files of one hospital's node, by name."""

    path: Path

    @property
    def key(self) -> Path:
        return self.path / "node.key"

    @property
    def public_key(self) -> Path:
        return self.path / "node.pub"

    @property
    def identity_key(self) -> Path:
        return self.path / IDENTITY_FILE

    @property
    def next_key(self) -> Path:
        """A new key that waits for the coordinator's answer (``node_rotation``)."""
        return self.path / "node.next.key"

    @property
    def next_public_key(self) -> Path:
        return self.path / "node.next.pub"

    @property
    def next_identity_key(self) -> Path:
        return self.path / "identity.next.key"

    @property
    def join_number(self) -> Path:
        """The number of the answer that was taken in last."""
        return self.path / "join.number"

    @property
    def coordinator_key(self) -> Path:
        return self.path / "coordinator.pub"

    @property
    def policy(self) -> Path:
        return self.path / "policy.toml"

    @property
    def worker_config(self) -> Path:
        return self.path / "worker.toml"

    @property
    def node_config(self) -> Path:
        return self.path / "node.toml"

    @property
    def authority(self) -> Path:
        return self.path / "authority.crt"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def socket(self) -> Path:
        return self.state / "relay" / "worker.sock"

    @property
    def ready_file(self) -> Path:
        return self.state / "worker-ready.json"

    def check(self) -> None:
        """Raise InvalidInputError if no node was made here."""
        if not self.key.exists():
            raise InvalidInputError(
                f"{self.path} holds no node", hint="make it with `instahide node init` first"
            )


def create_node(
    path: Path,
    *,
    name: str,
    data: Path,
    test_data: Path | None,
    public_data: Path | None,
    class_names: Sequence[str] = (),
    threads: int = 2,
) -> tuple[NodeFolder, JoinRequest, Path]:
    """Make a hospital's folder after reading its images once; the folder, the request, and its file.

    Raises RefusedError if the folder holds a node already, InvalidInputError for unusable images.
    """
    from .site.dataset import load_site_data
    from .site.worker_config import load_worker_config

    folder = NodeFolder(path.resolve())
    if folder.key.exists():
        raise RefusedError(f"{path} already holds a node", hint="use another folder")
    settings: dict[str, object] = {
        "site-name": name,
        "data": str(data.resolve()),
        "test-data": "" if test_data is None else str(test_data.resolve()),
        "public-data": "" if public_data is None else str(public_data.resolve()),
        "policy": "policy.toml",
        "socket": "state/relay/worker.sock",
        "state-folder": "state",
        "identity-key": IDENTITY_FILE,
        "coordinator-key": "coordinator.pub",
        "ready-file": "state/worker-ready.json",
        "threads": threads,
    }
    if class_names:
        settings["class-names"] = list(class_names)
    lines = ["# The site worker's settings; paths are relative to this folder."]
    lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    with nothing_left_on_error(path):  # a second try finds nothing in its way
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        atomic_write_text(folder.worker_config, "\n".join(lines) + "\n", mode=0o600)
        site = load_site_data(load_worker_config(folder.worker_config))
        if not folder.policy.exists():
            write_default_policy(folder.policy)
        create_node_key(folder.path)
        load_or_create_identity(folder.identity_key)
        request, request_file = write_node_request(folder, site, name)
    return folder, request, request_file


def join(folder: NodeFolder, answer: JoinAnswer, *, another_coordinator: bool = False) -> NodeSettings:
    """Take the coordinator's answer in; where it is for new keys that wait, they are used from now on.

    ``another_coordinator`` allows an answer by another identity key than that of the coordinator joined
    before. Raises RefusedError if the answer is for another key, by another coordinator unasked, or
    older than the one taken in before.
    """
    from .node_rotation import is_waiting, use_waiting_keys

    folder.check()
    own = public_key_fingerprint(folder.public_key)
    waiting = is_waiting(folder, answer.fingerprint)
    if answer.fingerprint != own and not waiting:
        raise RefusedError(
            f"the answer is for the key {answer.fingerprint}, this node has {own}",
            hint="ask the coordinator to admit this node's request file",
        )
    if not another_coordinator:
        _check_is_from_our_coordinator(folder, answer)
    if waiting:
        use_waiting_keys(folder)
    atomic_write_bytes(folder.authority, answer.authority.encode("ascii"))
    atomic_write_text(folder.coordinator_key, answer.identity_key + "\n")
    atomic_write_text(folder.join_number, f"{answer.number}\n")
    settings = NodeSettings(
        name=answer.name,
        coordinator=answer.coordinator,
        authority=folder.authority,
        private_key=folder.key,
        state_folder=folder.state,
        worker_socket=folder.socket,
    )
    atomic_write_text(folder.node_config, settings.to_toml(), mode=0o600)
    return settings


def _check_is_from_our_coordinator(folder: NodeFolder, answer: JoinAnswer) -> None:
    if not folder.coordinator_key.exists():
        return
    if folder.coordinator_key.read_bytes().strip() != answer.identity_key.encode("ascii"):
        raise RefusedError(
            "the join file is signed by another coordinator than the one this node has joined",
            hint="if the coordinator was made anew, compare its safety number by telephone and add "
            "--another-coordinator",
        )
    if answer.number < _number_taken_in(folder):
        raise RefusedError(
            "the join file is older than the one this node has taken in",
            hint="ask the coordinator for the latest: it writes one at each `instahide coordinator admit`",
        )


def _number_taken_in(folder: NodeFolder) -> int:
    try:
        return int(folder.join_number.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def worker_process(
    folder: NodeFolder, *, threads: int | None = None, accept_changed_data: bool = False
) -> ManagedProcess:
    """The site worker of this folder, not started yet; logs to ``state/worker.log``."""
    folder.check()
    folder.state.mkdir(mode=0o700, exist_ok=True)  # before others make it on the way to their own
    command = [sys.executable, "-m", "federation.site.worker", "--config", str(folder.worker_config)]
    return ManagedProcess(
        "site worker",
        [*command, "--accept-changed-data"] if accept_changed_data else command,
        log_path=folder.state / "worker.log",
        environment=flower_environment(folder.state / "flower", num_threads=threads),
    )


def start_worker(
    folder: NodeFolder, *, threads: int | None = None, accept_changed_data: bool = False
) -> ManagedProcess:
    """Start the site worker and wait until it has read its images and listens.

    Raises RefusedError if one of this folder listens already, FederationError (with the log's
    end) if it does not come up, for instance because the images are not the registered ones.
    """
    process = worker_process(folder, threads=threads, accept_changed_data=accept_changed_data)
    if worker_listens(folder):
        raise RefusedError(
            f"a site worker of {folder.path} is already up", hint="stop the other `instahide node start`"
        )
    folder.ready_file.unlink(missing_ok=True)
    process.start()
    try:
        return process.wait_until(folder.ready_file.exists, within=READY_SECONDS)
    except BaseException:
        process.stop()
        raise


def relay_process(folder: NodeFolder, *, threads: int | None = None) -> ManagedProcess:
    """The node process (Flower's SuperNode and our relay), not started yet."""
    if not folder.node_config.exists():
        raise InvalidInputError(
            f"{folder.path} has not joined a federation yet",
            hint="`instahide node join FOLDER NAME.join.json` with the coordinator's answer",
        )
    folder.state.mkdir(mode=0o700, exist_ok=True)
    return node_process(folder.node_config, num_threads=threads)


def worker_listens(folder: NodeFolder) -> bool:
    """Whether a site worker accepts connections on this node's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(folder.socket))
        except OSError:
            return False
    return True
