"""The demonstration's machinery: one coordinator and three hospitals as real processes.

Everything a real deployment does is done, by the same functions: certificates and node keys,
join requests and answers, a policy per site, a site worker and a supervised node per hospital,
the gateway in front of the SuperLink. Only the network is this machine's loopback.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from instahide.atomic import atomic_write_text
from instahide.errors import FederationError

from ..config import RunConfig
from ..flower_processes.bundle import Bundle
from ..flower_processes.control import ControlClient
from ..flower_processes.node import supervised_node
from ..flower_processes.superlink import Coordinator, CoordinatorFolder, start_coordinator
from ..joining import JoinRequest
from ..node_folder import READY_SECONDS, NodeFolder, create_node, join, relay_process, worker_process
from ..node_plans import approve
from ..plan import Plan
from ..site.policy import default_policy_text
from ..study import Study, admit, create_study, record_submission
from ..supervision import ManagedProcess, RestartedProcess, free_port
from .data import DemoData, Hospital, save_part
from .settings import DemoSettings


@dataclass
class RunningHospital:
    """One hospital's folder and its two processes."""

    folder: NodeFolder
    worker: ManagedProcess
    node: RestartedProcess

    def kill(self) -> None:
        """What a power cut does: both processes gone at once, nothing said to anybody."""
        self.worker.kill()
        self.node.process.kill()

    def revive_worker(self) -> None:
        """The machine is back: its worker starts again (the node's supervisor does so by itself)."""
        self.folder.ready_file.unlink(missing_ok=True)
        self.worker.start()


@dataclass
class Federation:
    """The running coordinator, the control interface, the study and the hospitals by name."""

    study: Study
    coordinator: Coordinator
    control: ControlClient
    hospitals: dict[str, RunningHospital] = field(default_factory=dict)

    def check(self) -> None:
        """Raise FederationError if a coordinator process has ended."""
        self.coordinator.check()


@contextmanager
def running_federation(
    settings: DemoSettings, data: DemoData, say: Callable[[str], None]
) -> Iterator[Federation]:
    """Start everything, yield when every hospital is connected, stop everything."""
    with ExitStack() as stack:
        port = free_port()
        study = create_study(settings.out / "study", names=("127.0.0.1",), listen="127.0.0.1", port=port)
        made = [_make_hospital(settings, data, hospital) for hospital in data.hospitals]
        workers = [stack.enter_context(worker_process(folder, threads=1)) for folder, _ in made]
        say("certificates, node keys and policies made; starting coordinator and site workers")
        folder = CoordinatorFolder(study.path)
        coordinator = stack.enter_context(start_coordinator(folder, gateway_port=port, num_threads=1))
        control = stack.enter_context(
            ControlClient(coordinator.superlink_address, authority=folder.authority.certificate)
        )
        federation = Federation(study, coordinator, control)
        for (node_folder, request), worker in zip(made, workers, strict=True):
            node_id = control.register_node(request.public_key.encode(), name=request.name)
            join(node_folder, admit(study, request, node_id))
            node = stack.enter_context(supervised_node(relay_process(node_folder, threads=1)))
            federation.hospitals[request.name] = RunningHospital(node_folder, worker, node)
        yield federation


def wait_until_connected(federation: Federation) -> None:
    """Return once every site worker listens and every node is online; FederationError otherwise."""
    deadline = time.monotonic() + READY_SECONDS
    for hospital in federation.hospitals.values():
        hospital.worker.wait_until(
            hospital.folder.ready_file.exists, within=max(1.0, deadline - time.monotonic())
        )
    while True:
        federation.check()
        online = sum(record.is_online for record in federation.control.list_nodes())
        if online == len(federation.hospitals):
            return
        if time.monotonic() > deadline:
            raise FederationError(
                f"{online} of {len(federation.hospitals)} hospitals are connected after {READY_SECONDS:g} s",
                hint="the logs are in the hospitals' state folders",
            )
        time.sleep(0.2)


def approve_plan(federation: Federation, config: RunConfig, bundle: Bundle) -> Plan:
    """What `instahide node plan approve` does, at every hospital, before the run is submitted."""
    plan = Plan.of(config, bundle_sha256=bundle.sha256)
    record_submission(federation.study, config, plan)
    for hospital in federation.hospitals.values():
        approve(hospital.folder, plan, by="the demonstration")
    return plan


def _make_hospital(
    settings: DemoSettings, data: DemoData, hospital: Hospital
) -> tuple[NodeFolder, JoinRequest]:
    import numpy as np

    home = settings.out / "hospitals" / hospital.name
    images = save_part(hospital, home / "data")
    public = home / "data" / "public.npz"
    np.savez(public, x=data.public.images)
    _write_policy(settings, home / "policy.toml")
    folder, request, _ = create_node(
        home,
        name=hospital.name,
        data=images,
        test_data=None,
        public_data=public,
        class_names=data.test.class_names or (),
        threads=1,
    )
    return folder, request


def _write_policy(settings: DemoSettings, path: Path) -> None:
    """The strict default, but for the two things this comparison needs."""
    text = default_policy_text()
    for strict, here in (
        ("encoding-required = true", "encoding-required = false  # the demonstration compares both"),
        ("max-update-exposures = 1", f"max-update-exposures = {settings.max_update_exposures}"),
        ("minimum-examples = 50", "minimum-examples = 20"),
    ):
        assert strict in text, strict
        text = text.replace(strict, here)
    atomic_write_text(path, text, mode=0o600)
