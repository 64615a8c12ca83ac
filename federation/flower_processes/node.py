"""A hospital's node process: Flower's SuperNode and our relay in one Python process.

    python -m federation.flower_processes.node --config node.toml

``node.toml`` (see ``NodeSettings``)::

    name = "north"
    coordinator = "fl.example.org:8443"      # the gateway
    authority = "authority.crt"              # the federation's certificate
    private-key = "node.key"                 # this hospital's key; its public half is registered
    state-folder = "state"                   # private folder of this process
    worker-socket = "state/worker.sock"      # where the site worker listens
    client = "federation.client_app:app"     # our relay; tests put theirs here

The process ends with 0 after a stop and 5 when the connection could not be made or was lost;
``explain_node_exit`` reads the reason from its output. ``supervised_node`` keeps it up. The
SuperNode's runtime interface listens on a loopback port the system chooses, for this process
only: fetching a task needs a secret made at start and kept in memory.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import secrets
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from instahide.errors import FederationError, InstaHideError, InvalidInputError

from ..supervision import ManagedProcess, RestartedProcess
from .environment import OFFLINE_SWITCHES, flower_environment
from .http_log import keep_refused_calls
from .polling import SHORTEST, NodeClock, install, look_again_soon
from .receiving import guard
from .sending import guard as guard_sending

log = logging.getLogger("node")

CONNECTED = "SuperNode ID:"  # the line Flower logs once the coordinator has admitted the node
FAILED = 5

REFUSED_KEY = (
    "the coordinator refused this node's key or signature: was the key revoked or replaced there? else "
    "compare the clocks"
)

# What Flower's output says -> what it means for the person who reads it. First match counts.
REASONS = (
    (
        "certificate has expired",
        "the coordinator's certificate has expired and the coordinator must renew it, unless this machine's "
        "clock is wrong",
    ),
    (
        "certificate is not yet valid",
        "the coordinator's certificate is not valid yet; compare the two machines' clocks",
    ),
    ("hostname mismatch", "the coordinator's certificate is for another host name; check `coordinator`"),
    ("ip address mismatch", "the coordinator's certificate is for another address; check `coordinator`"),
    (
        "certificate_verify_failed",
        "the coordinator's certificate is not signed by this federation's authority; check `authority`",
    ),
    (
        "certificate verify failed",
        "the coordinator's certificate is not signed by this federation's authority",
    ),
    (
        "[code: 2004]",
        "the coordinator refused this node: its key is not registered there (or was revoked), or "
        "the node was cut off less than a minute ago and is still counted as online",
    ),
    ("invalid supernode authentication", REFUSED_KEY),
    ("401 unauthorized", REFUSED_KEY),
    ("429 too many requests", "the gateway limits how often this address may call"),
    ("connection refused", "nothing answers at the coordinator's address"),
    ("name or service not known", "the coordinator's host name is not known here"),
    ("timed out", "the coordinator did not answer in time"),
)


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """A node's settings; kebab-case keys in its TOML file, relative paths from the file's folder."""

    name: str
    coordinator: str
    authority: Path
    private_key: Path
    state_folder: Path
    worker_socket: Path | None = None
    client: str = "federation.client_app:app"
    shortest_poll: float = SHORTEST

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, base: Path) -> Self:
        """From a TOML table. Raises InvalidInputError for unknown, missing or wrong keys."""
        known = {item.name.replace("_", "-"): item.name for item in fields(cls)}
        if unknown := sorted(set(mapping) - set(known)):
            raise InvalidInputError(f"unknown node setting {unknown[0]!r}", hint=f"known: {sorted(known)}")
        values = {known[key]: value for key, value in mapping.items()}
        for name in ("authority", "private_key", "state_folder", "worker_socket"):
            if name in values:
                values[name] = base / str(values[name])
        try:
            return cls(**values)
        except TypeError as error:
            raise InvalidInputError(f"the node's settings are incomplete: {error}") from error

    def to_toml(self) -> str:
        """The settings as the TOML text ``load_settings`` reads."""
        lines = []
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                text = repr(value) if isinstance(value, float) else _quoted(str(value))
                lines.append(f"{item.name.replace('_', '-')} = {text}\n")
        return "".join(lines)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def load_settings(path: Path) -> NodeSettings:
    """Read a node's TOML file. Raises InvalidInputError if it is missing or wrong."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"there is no file {path}", hint="make it with `instahide node join`"
        ) from error
    except ValueError as error:  # TOML's error, and bytes that are no text
        raise InvalidInputError(
            f"{path} is not TOML: {error}", hint="make it anew with `instahide node join`"
        ) from error
    return NodeSettings.from_mapping(table, base=path.resolve().parent)


def node_process(
    config: Path, *, num_threads: int | None = None, extra: Mapping[str, str] | None = None
) -> ManagedProcess:
    """The node process of this configuration file, not started yet; logs to ``state-folder/node.log``."""
    settings = load_settings(config)
    return ManagedProcess(
        f"node-{settings.name}",
        [sys.executable, "-m", "federation.flower_processes.node", "--config", str(config)],
        log_path=settings.state_folder / "node.log",
        environment=flower_environment(
            settings.state_folder / "flower", num_threads=num_threads, extra=extra
        ),
    )


def supervised_node(
    process: ManagedProcess, *, on_exit: Callable[[int, str | None, float], None] | None = None
) -> RestartedProcess:
    """Keeps a node up. A node that crashed is refused for about a minute; the retries outlast that."""
    return RestartedProcess(process, explain=explain_node_exit, on_exit=on_exit)


def is_connected(process: ManagedProcess) -> bool:
    """Whether the coordinator has admitted the node in this start."""
    return CONNECTED in process.log_tail(10_000)


def explain_node_exit(exit_code: int, output: str) -> str | None:
    """Why a node ended, in words; None if its output has no known reason."""
    text = output.lower()
    for sign, meaning in REASONS:
        if sign in text:
            return meaning
    return f"killed by signal {-exit_code}" if exit_code < 0 else None


def run_node(settings: NodeSettings) -> int:
    """Connect to the coordinator and answer its messages until stopped; the exit status."""
    os.environ.update(OFFLINE_SWITCHES)  # before Flower is imported, however we were started
    from flwr.supercore.exit import add_exit_handler
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.nodestate import NodeStateFactory

    from .relay_executor import RelayExecutor, load_client

    loop = importlib.import_module("flwr.supernode.start_client_internal")
    clock = NodeClock(shortest=settings.shortest_poll)
    install(clock, loop)
    look_again_soon(loop)
    receiving = threading.Lock()
    guard(receiving, loop)
    guard_sending(loop)
    secret = secrets.token_bytes(32)
    state = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    address, stop_runtime = _serve_runtime(state, secret)
    node_settings = {"site-name": settings.name}
    if settings.worker_socket is not None:
        node_settings["worker-socket"] = str(settings.worker_socket)
    relay = RelayExecutor(
        address,
        secret=secret,
        client=load_client(settings.client),
        clock=clock,
        receiving=receiving,
        node_settings=node_settings,
    )
    add_exit_handler(stop_runtime)
    add_exit_handler(relay.stop)
    relay.start()
    try:
        loop.start_client_internal(
            state_factory=state,
            server_address=settings.coordinator,
            node_config={},
            root_certificates=_read(settings.authority, "the federation's certificate"),
            insecure=False,
            authentication_keys=_load_keys(settings.private_key),
            isolation="process",
            runtime_api_address=address,
            superexec_auth_secret=secret,
        )
    except SystemExit as end:  # Flower's own way out, after a signal (0) or a failure
        return FAILED if end.code else 0
    log.error("the connection to the coordinator was lost")  # Flower logged why and returned
    return FAILED


def _serve_runtime(state: Any, secret: bytes) -> tuple[str, Callable[[], None]]:
    """Serve the SuperNode's runtime interface on a loopback port; its address, and how to stop it."""
    import uvicorn
    from flwr.supernode.main import create_app

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    app = create_app(state_factory=state, superexec_auth_secret=secret)
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning", workers=1))
    thread = threading.Thread(target=server.run, args=([listener],), name="runtime", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise FederationError("the node's runtime interface did not start", hint="see the lines above")
        time.sleep(0.01)

    def stop() -> None:
        server.should_exit = True
        thread.join(timeout=2.0)

    return f"127.0.0.1:{listener.getsockname()[1]}", stop


def _load_keys(path: Path) -> tuple[Any, Any]:
    from ..provisioning import load_node_key

    key = load_node_key(path)
    return key, key.public_key()


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"cannot read {what} {path}: {error.strerror}", hint="check the path"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Command line of the node process; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m federation.flower_processes.node", description="A node.")
    parser.add_argument("--config", type=Path, required=True, help="TOML file with the node's settings")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    keep_refused_calls()
    try:
        return run_node(load_settings(options.config))
    except InstaHideError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
