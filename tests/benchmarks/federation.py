"""Seconds a round, ours with less and more protection and a plain Flower app, in one run on this machine.

Three hospitals hold the same parts of scikit-learn's digits and train the same small CNN for one
local epoch a round, over TLS with node keys. Ours is the product as it ships: gateway, nodes with
their relay, site workers, plans approved, audit logs, every update validated, a checkpoint every
round; then the same with secure aggregation, with its survivors confirmed, and with encodings, too.
Plain is Flower as in its tutorials: stock SuperLink and SuperNodes (subprocess isolation), stock
FedAvg, torch imported by the ClientApp, no gateway, no checks, no checkpoint. None evaluates. Printed:
the median seconds a round of each, ratios, and our seconds beyond training (a round's time less
the slowest worker's). First rounds are left out. Figures worth quoting need a quiet machine.

    python -m tests.benchmarks.federation [--rounds 6] [--json FILE]      (from the repository root)
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from federation.demo.data import DemoData, prepare, save_part
from federation.demo.hospitals import Federation, approve_plan, running_federation, wait_until_connected
from federation.demo.settings import HOSPITALS, DemoSettings
from federation.flower_processes.bundle import build_bundle, bundle_from_folder
from federation.flower_processes.control import ControlClient
from federation.flower_processes.environment import flower_environment, program
from federation.flower_processes.node import is_connected
from federation.flower_processes.superlink import CoordinatorFolder, create_coordinator_folder, is_healthy
from federation.following import EventTail, follow_run, raise_unless_completed
from federation.provisioning import create_node_key
from federation.study import prepare_run
from federation.supervision import ManagedProcess, free_port

PLAIN_APP = Path(__file__).resolve().parent / "plain_flower_app"
START_SECONDS = 180.0


SECURE: dict[str, Any] = {"secure-aggregation": True, "reconstruction-threshold": 2}
PROTECTIONS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "secure-aggregation": SECURE,
    "confirmed": SECURE | {"confirm-survivors": True},
    "everything": SECURE | {"confirm-survivors": True, "encoding": "instahide", "absolute-input": True},
}
Seconds = tuple[list[float], list[float]]


def our_rounds(root: Path, data: DemoData, rounds: int) -> dict[str, Seconds]:
    """Protection → (seconds, seconds beyond training) of each round after the first."""
    settings = DemoSettings(out=root, num_server_rounds=rounds, local_epochs=1)
    with running_federation(settings, data, say=lambda _: None) as federation:
        wait_until_connected(federation)
        return {name: _one_run(settings, federation, name, extra) for name, extra in PROTECTIONS.items()}


def _one_run(settings: DemoSettings, federation: Federation, name: str, extra: dict[str, Any]) -> Seconds:
    values = settings.run_settings(name=name, encoded=False) | {"evaluate": False} | extra
    config = prepare_run(federation.study, values)
    folder = federation.study.run_folder(name)
    bundle = build_bundle()
    approve_plan(federation, config, bundle)
    run_id = federation.control.submit_run(bundle, config.to_run_config())
    events: list[dict[str, object]] = []
    status = follow_run(federation.control, run_id, EventTail(folder / "events.jsonl"), events.append)
    raise_unless_completed(status, events)
    rows = [row for row in json.loads((folder / "metrics.json").read_text())["rounds"] if row["round"] > 1]
    return [row["seconds"] for row in rows], [row["overhead-seconds"] for row in rows]


def plain_rounds(root: Path, data: DemoData, rounds: int) -> list[float]:
    """Seconds of each round after the first."""
    report = root / "report.txt"
    with plain_federation(root, data) as control:
        settings = {"report": str(report), "num-server-rounds": rounds, "num-nodes": len(HOSPITALS)}
        run_id = control.submit_run(bundle_from_folder(PLAIN_APP), settings)
        while not (status := control.run_status(run_id)).is_finished:
            time.sleep(1.0)
        if not status.is_completed:
            raise SystemExit(f"the plain run ended as {status.status}: {status.details}")
    stamps = [float(line) for line in report.read_text().split()]
    return [after - before for before, after in itertools.pairwise(stamps)][1:]


@contextmanager
def plain_federation(root: Path, data: DemoData) -> Iterator[ControlClient]:
    folder = create_coordinator_folder(root / "coordinator", names=["127.0.0.1"])
    authority, port = folder.authority.certificate, free_port()
    with ExitStack() as stack:
        superlink = stack.enter_context(_stock_superlink(folder, port))
        superlink.wait_until(lambda: is_healthy("127.0.0.1", port, authority), within=START_SECONDS)
        control = stack.enter_context(ControlClient(f"127.0.0.1:{port}", authority=authority))
        nodes = []
        for hospital in data.hospitals:
            site = root / hospital.name
            images = save_part(hospital, site)
            nodes.append(stack.enter_context(_stock_node(site, images, control, authority, port)))
        for node in nodes:
            node.wait_until(lambda node=node: is_connected(node), within=START_SECONDS)
        yield control


def _stock_environment(folder: Path) -> dict[str, str]:
    """Offline as ours is, but with Flower's own poll interval of a second."""
    return flower_environment(folder, num_threads=1, task_poll_seconds=1.0)


def _stock_superlink(folder: CoordinatorFolder, port: int) -> ManagedProcess:
    command = [
        program("flower-superlink"),
        *("--ssl-ca-certfile", str(folder.authority.certificate)),
        *("--ssl-certfile", str(folder.superlink.certificate), "--ssl-keyfile", str(folder.superlink.key)),
        *("--host", "127.0.0.1", "--port", str(port), "--database", str(folder.database)),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
    ]
    environment = _stock_environment(folder.flower_home)
    return ManagedProcess(
        "superlink", command, log_path=folder.log("superlink"), environment=environment, stop_seconds=3
    )


def _stock_node(
    site: Path, images: Path, control: ControlClient, authority: Path, port: int
) -> ManagedProcess:
    key = create_node_key(site)
    control.register_node(key.public, name=site.name)
    command = [
        program("flower-supernode"),
        *("--superlink", f"127.0.0.1:{port}", "--root-certificates", str(authority)),
        *("--auth-supernode-private-key", str(key.private)),
        *("--host", "127.0.0.1", "--port", str(free_port())),
        *("--node-config", f'data="{images}"'),
    ]
    environment = _stock_environment(site / "flower")
    return ManagedProcess(site.name, command, log_path=site / "node.log", environment=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = prepare(None, HOSPITALS, concentration=0.5, split_seed=7)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        ours = our_rounds(Path(folder), data, options.rounds)
    base = statistics.median(ours["fedavg"][0])
    for name, (seconds, overhead) in ours.items():
        median, beyond = statistics.median(seconds), statistics.median(overhead)
        print(f"ours, {name:20s} {median:6.2f} s a round, {beyond:5.2f} s of them beyond training", end="")
        print(f"   {median / base:4.2f} x fedavg   {[round(s, 2) for s in seconds]}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        plain = plain_rounds(Path(folder), data, options.rounds)
    print(f"plain Flower  {statistics.median(plain):7.2f} s a round   {[round(s, 2) for s in plain]}")
    for name in ("fedavg", "everything"):
        ratio = statistics.median(plain) / statistics.median(ours[name][0])
        print(f"plain Flower over ours, {name}: {ratio:.1f}")
    print(f"{os.cpu_count()} cores, load at start {load:.1f}")
    if options.json:
        figures = {"ours": ours, "plain": plain, "load": load}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
