"""A coordinator and three hospitals as real processes on loopback, each hospital behind a bad link.

The same functions as ``instahide coordinator`` and ``instahide node`` call: certificates, node keys,
gateway, SuperLink, one site worker and one node a hospital, both started again when they end.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from federation.config import RunConfig
from federation.coordinator.events import read_events
from federation.flower_processes.bundle import Bundle, build_bundle
from federation.flower_processes.control import ControlClient, RunStatus
from federation.flower_processes.node import supervised_node
from federation.flower_processes.superlink import Coordinator, CoordinatorFolder, start_coordinator
from federation.joining import JoinRequest
from federation.node_folder import NodeFolder, create_node, join, relay_process, worker_process
from federation.site.policy import default_policy_text
from federation.study import Study, admit, create_study, load_run, prepare_run
from federation.supervision import RestartedProcess, free_port

from ..federation.command_line import until, write_digits
from .link import BadLink
from .lossy_path import FAR, NEAR, LossyPath

NAMES = ("anna", "bern", "cork")
PATIENCE = 300.0  # seconds, on machines with much else to do
QUICK: Mapping[str, Any] = {
    "model": "mlp",
    "num-views": 1,
    "minimum-sites": 2,
    "max-failed-rounds": 50,
    "retry-pause": 1.0,
    "round-deadline": 120.0,
}


@dataclass
class Hospital:
    """One hospital: its folder, its link, and its two processes, each started again when it ends."""

    folder: NodeFolder
    link: BadLink
    worker: RestartedProcess
    node: RestartedProcess

    def audit_events(self) -> list[str]:
        """The events of its audit log, in order."""
        path = self.folder.state / "audit.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line)["event"] for line in lines]


@dataclass
class RealFederation:
    """The running processes; ``hospitals`` by name."""

    study: Study
    coordinator: Coordinator
    control: ControlClient
    hospitals: dict[str, Hospital] = field(default_factory=dict)

    @property
    def folder(self) -> CoordinatorFolder:
        return CoordinatorFolder(self.study.path)

    def start_run(self, name: str, *, bundle: Bundle | None = None, **settings: Any) -> int:
        """Prepare and submit a run; its number. Another ``bundle`` stands for another release."""
        given = {key.replace("_", "-"): value for key, value in settings.items()}
        config = prepare_run(self.study, {"run-name": name, **QUICK, **given})
        return self.control.submit_run(bundle or build_bundle(), config.to_run_config())

    def resume(self, name: str, **settings: Any) -> int:
        """Submit a run again, to go on after its last checkpoint."""
        given = {key.replace("_", "-"): value for key, value in settings.items()}
        values = load_run(self.study, name).to_mapping() | given | {"resume": True}
        return self.control.submit_run(build_bundle(), RunConfig.from_mapping(values).to_run_config())

    def events(self, name: str, *kinds: str) -> list[dict[str, Any]]:
        """The events of a run, all or only of these kinds."""
        found = read_events(self.study.run_folder(name) / "events.jsonl")
        return [event for event in found if not kinds or event["event"] in kinds]

    def wait_for(self, name: str, kind: str, count: int = 1, within: float = PATIENCE) -> None:
        """Wait until a run has had ``count`` events of a kind."""
        seen = until(lambda: len(self.events(name, kind)) >= count, within)
        assert seen, f"no {kind}; last: {self.events(name)[-3:]}"

    def wait_for_end(self, run_id: int, within: float = PATIENCE) -> RunStatus:
        """The status of a run that has ended."""
        assert until(lambda: self.control.run_status(run_id).is_finished, within)
        return self.control.run_status(run_id)

    def stop(self, run_id: int, name: str) -> None:
        """Stop a run and wait until its folder is free."""
        self.control.stop_run(run_id)
        self.wait_for_end(run_id)
        assert until(lambda: not self.server_app(name), 60.0)

    def server_app(self, name: str) -> psutil.Process | None:
        """The process that serves a run: the one that holds its folder's lock."""
        try:
            process = psutil.Process(int((self.study.run_folder(name) / ".lock").read_text()))
            return None if process.status() == psutil.STATUS_ZOMBIE else process
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None

    def online(self) -> set[str]:
        """Names of the nodes the coordinator counts as online."""
        return {record.name for record in self.control.list_nodes() if record.is_online}

    def wait_until_online(self, *names: str, within: float = PATIENCE) -> None:
        """Wait for these nodes, or all."""
        assert until(lambda: self.online() >= set(names or NAMES), within), self.online()

    @contextmanager
    def losing_packets(self, share: float) -> Iterator[LossyPath]:
        """All hospitals reach the coordinator over IP packets of which this share is lost."""
        gateway = ("127.0.0.1", self.coordinator.gateway_port)
        links = [hospital.link for hospital in self.hospitals.values()]
        with LossyPath(share) as path, BadLink(gateway, host=NEAR) as beyond:
            try:
                for link in links:
                    link.target = (FAR, beyond.port)
                    link.reset_all()
                yield path
            finally:
                for link in links:
                    link.target = gateway
                    link.reset_all()

    def restart_superlink(self) -> None:
        """Start SuperLink, SuperExec and gateway again, on the gateway's port, over the same database."""
        self.control.close()
        port = self.coordinator.gateway_port
        self.coordinator.stop()
        self.coordinator = start_coordinator(self.folder, gateway_port=port, num_threads=1, within=PATIENCE)
        self.control = self._open_control()

    def _open_control(self) -> ControlClient:
        return ControlClient(self.coordinator.superlink_address, authority=self.folder.authority.certificate)

    def close(self) -> None:
        self.control.close()
        self.coordinator.stop()


def soon(condition: Callable[[], bool], within: float = PATIENCE) -> bool:
    """Wait in short steps, to hit a phase that lasts a tenth of a second."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.005)
    return condition()


def policy_text() -> str:
    """The strict default, but for a quorum of two, no approval of plans, and runs without end."""
    text = default_policy_text()
    for key, value in (
        ("plan-approval", "false"),
        ("minimum-cohort-size", "1"),
        ("max-rounds", "100000"),
        ("max-runs", "1000"),
        ("max-repeated-rounds", "100000"),
    ):
        text, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
        assert count == 1, key
    return text


def make_node(root: Path, name: str, number: int) -> tuple[NodeFolder, JoinRequest]:
    """A hospital's folder over some of the digits."""
    home = root / name
    home.mkdir()
    (home / "policy.toml").write_text(policy_text())
    data = write_digits(root / f"{name}.npz", 200 * number)
    folder, request, _ = create_node(home, name=name, data=data, test_data=None, public_data=None, threads=1)
    return folder, request


def take_in(federation: RealFederation, folder: NodeFolder, request: JoinRequest) -> BadLink:
    """Admit a node and join it, through a link of its own."""
    node_id = federation.control.register_node(request.public_key.encode(), name=request.name)
    join(folder, admit(federation.study, request, node_id))
    link = BadLink(("127.0.0.1", federation.study.port))
    text = folder.node_config.read_text()
    folder.node_config.write_text(text.replace(f":{federation.study.port}", f":{link.port}"))
    return link


@contextmanager
def real_federation(root: Path) -> Iterator[RealFederation]:
    """Start everything, yield when all three hospitals are online, stop everything."""
    port = free_port()
    study = create_study(root / "study", names=("127.0.0.1",), listen="127.0.0.1", port=port)
    folder = CoordinatorFolder(study.path)
    with ExitStack() as stack:
        coordinator = start_coordinator(folder, gateway_port=port, num_threads=1, within=PATIENCE)
        control = ControlClient(coordinator.superlink_address, authority=folder.authority.certificate)
        federation = RealFederation(study, coordinator, control)
        stack.callback(federation.close)
        for number, name in enumerate(NAMES):
            made, request = make_node(root, name, number)
            link = stack.enter_context(take_in(federation, made, request))
            worker = stack.enter_context(RestartedProcess(worker_process(made, threads=1)))
            worker.process.wait_until(made.ready_file.exists, within=PATIENCE)
            node = stack.enter_context(supervised_node(relay_process(made, threads=1)))
            federation.hospitals[name] = Hospital(made, link, worker, node)
        federation.wait_until_online()
        yield federation
