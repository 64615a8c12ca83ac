"""Register nodes, submit runs and watch them, through the SuperLink's control interface.

Flower's own ``flwr`` command does the same, but costs two seconds of imports a call, exits 0
when a run failed and prints what we would have to parse. We call the interface it calls, from
this process, with the authority's certificate and no account; it answers on loopback only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from instahide.errors import FederationError, InvalidInputError

from ..provisioning import load_public_key, public_key_fingerprint
from .bundle import Bundle
from .environment import without_proxies

FINISHED = "finished"
COMPLETED = "finished:completed"


@dataclass(frozen=True)
class NodeRecord:
    """A registered node: Flower's id for it, the name given at registration, its key and state."""

    node_id: int
    name: str
    fingerprint: str
    status: str  # "registered", "online", "offline" or "unregistered"

    @property
    def is_online(self) -> bool:
        return self.status == "online"


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands: ``pending``, ``starting``, ``running`` or ``finished:...`` and why."""

    run_id: int
    status: str
    details: str

    @property
    def is_finished(self) -> bool:
        return self.status.startswith(FINISHED)

    @property
    def is_completed(self) -> bool:
        return self.status == COMPLETED

    @property
    def exit_code(self) -> int | None:
        """0 completed, 1 failed, 130 stopped, None while it is not finished."""
        if not self.is_finished:
            return None
        return {COMPLETED: 0, f"{FINISHED}:stopped": 130}.get(self.status, 1)


class ControlClient:
    """The control interface of one SuperLink. ``address`` is ``host:port``."""

    def __init__(self, address: str, *, authority: Path) -> None:
        self.address = address
        with without_proxies():
            self._client = ControlHttpClient.from_server_address(
                server_address=address,
                insecure=False,
                root_certificates=authority.read_bytes(),
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            )

    def register_node(self, public_key: Path | bytes, *, name: str) -> int:
        """Register a hospital's public key (``node.pub``) under ``name``; its node id.

        Registering the same key again returns the id it already has. Raises InvalidInputError
        for a key that is not a NIST elliptic-curve key.
        """
        if not name.strip():
            raise InvalidInputError("a node needs a name", hint="use the hospital's short name")
        fingerprint = public_key_fingerprint(public_key)
        if (known := self.find_node(fingerprint)) is not None:
            return known.node_id
        encoded = load_public_key(public_key).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        with self._errors(f"register {name}"):
            answer = self._client.RegisterNode(RegisterNodeRequest(public_key=encoded, name=name))
        if not answer.node_id:
            raise FederationError(f"the coordinator did not register {name}", hint="see its log")
        return int(answer.node_id)

    def unregister_node(self, node_id: int) -> None:
        """Take a node's registration back: it is refused from now on."""
        with self._errors(f"unregister node {node_id}"):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def list_nodes(self) -> list[NodeRecord]:
        """All nodes that are registered, in the order of their names."""
        with self._errors("list the nodes"):
            answer = self._client.ListNodes(ListNodesRequest())
        records = [
            NodeRecord(int(node.node_id), str(node.name), _fingerprint(node.public_key), str(node.status))
            for node in answer.nodes_info
            if node.status != "unregistered"
        ]
        return sorted(records, key=lambda record: (record.name, record.node_id))

    def find_node(self, fingerprint: str) -> NodeRecord | None:
        """The registered node with this key fingerprint, if any."""
        return next((node for node in self.list_nodes() if node.fingerprint == fingerprint), None)

    def submit_run(self, bundle: Bundle, run_config: Mapping[str, str | int | float | bool]) -> int:
        """Start a run of ``bundle`` with these settings over its defaults; the run id.

        A setting the bundle does not know is refused by Flower when the run starts.
        """
        for key, value in run_config.items():
            if not isinstance(value, str | int | float | bool):
                raise InvalidInputError(
                    f"the run setting {key!r} is a {type(value).__name__}",
                    hint="use text, numbers and booleans",
                )
        request = StartRunRequest(
            fab=fab_to_proto(Fab(bundle.sha256, bundle.content, {})),
            override_config=user_config_to_proto(dict(run_config)),
        )
        with self._errors("start the run"):
            answer = self._client.StartRun(request)
        if not answer.HasField("run_id"):
            raise FederationError(
                "the coordinator did not start the run", hint=str(answer.note) or "see its log"
            )
        return int(answer.run_id)

    def run_status(self, run_id: int) -> RunStatus:
        """The true state of a run, and after a failure what Flower says about it."""
        with self._errors(f"ask about run {run_id}"):
            answer = self._client.ListRuns(ListRunsRequest(run_id=run_id))
        run = answer.run_dict.get(run_id)
        if run is None:
            raise InvalidInputError(
                f"there is no run {run_id}", hint="`instahide coordinator status` lists them"
            )
        parts = [run.status.status, run.status.sub_status]
        return RunStatus(run_id, ":".join(part for part in parts if part), str(run.status.details))

    def list_runs(self, *, limit: int = 20) -> list[RunStatus]:
        """The latest runs."""
        with self._errors("list the runs"):
            answer = self._client.ListRuns(ListRunsRequest(limit=limit))
        return [
            RunStatus(
                int(run_id),
                ":".join(part for part in (run.status.status, run.status.sub_status) if part),
                str(run.status.details),
            )
            for run_id, run in answer.run_dict.items()
        ]

    def stop_run(self, run_id: int) -> bool:
        """Ask a run to stop; False if it was not running."""
        with self._errors(f"stop run {run_id}"):
            return bool(self._client.StopRun(StopRunRequest(run_id=run_id)).success)

    def follow_log(self, run_id: int) -> Iterator[str]:
        """The ServerApp's output piece by piece, until the run is finished."""
        with self._errors(f"read the log of run {run_id}"):
            for part in self._client.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=0.0)):
                yield str(part.log_output)

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Turn transport and Flower errors into ours, in words."""
        try:
            yield
        except httpx.HTTPStatusError as error:
            raise FederationError(
                f"cannot {doing}: {_flower_message(error)}", hint="see the SuperLink's log"
            ) from error
        except httpx.HTTPError as error:
            raise FederationError(
                f"cannot {doing}: no answer from the SuperLink at {self.address} ({error})",
                hint="`instahide coordinator status` shows whether it is up",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _flower_message(error: httpx.HTTPStatusError) -> str:
    details: Any = FlowerError.from_json(error.response.text)
    if details is None:
        return f"HTTP status {error.response.status_code}"
    return " ".join(str(part) for part in (details.message, details.public_details) if part)


def _fingerprint(pem: bytes) -> str:
    key = serialization.load_pem_public_key(pem)
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public_key_fingerprint(line)
