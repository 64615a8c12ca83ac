"""Seconds a round, ours and a plain Flower app, side by side in one run on this machine.

Both train the same small CNN with the same step on three nodes, over TLS with node keys, for the
same number of rounds. Plain: stock SuperLink and SuperNodes (subprocess isolation), stock FedAvg,
torch imported by the ClientApp. Ours: SuperLink, gateway and nodes as `instahide` starts them, and
the same step in the long-lived node process. Prints the median seconds a round of each, what the
step itself takes, and the ratio. A quiet machine is needed for figures worth quoting.

    python -m tests.benchmarks.federation [--rounds 5] [--nodes 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from federation.flower_processes.bundle import bundle_from_folder
from federation.flower_processes.control import ControlClient
from federation.flower_processes.environment import flower_environment, program
from federation.flower_processes.node import NodeSettings, is_connected, node_process
from federation.flower_processes.superlink import (
    CoordinatorFolder,
    create_coordinator_folder,
    is_healthy,
    start_coordinator,
)
from federation.provisioning import create_node_key
from federation.supervision import ManagedProcess, free_port

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
PLAIN_APP = TESTS / "federation" / "plain_flower_app"
OUR_APP = TESTS / "benchmarks" / "relay_app"
START_SECONDS = 180.0


def timed_run(
    control: ControlClient, app: Path, report: Path, *, rounds: int, nodes: int, healthy: Callable[[], None]
) -> list[float]:
    """Submit a run of the app and wait; the seconds of each round, from the report's time stamps."""
    settings: dict[str, str | int] = {"report": str(report), "num-server-rounds": rounds, "num-nodes": nodes}
    run_id = control.submit_run(bundle_from_folder(app), settings)
    while not (status := control.run_status(run_id)).is_finished:
        healthy()
        time.sleep(1.0)
    if not status.is_completed:
        raise SystemExit(f"the run ended as {status.status}: {status.details}")
    stamps = [float(line) for line in report.read_text().split()]
    return [after - before for before, after in itertools.pairwise(stamps)]


@contextmanager
def our_federation(root: Path, nodes: int) -> Iterator[tuple[ControlClient, Callable[[], None]]]:
    folder = create_coordinator_folder(root / "coordinator", names=["127.0.0.1"])
    with start_coordinator(folder, within=START_SECONDS) as coordinator, ExitStack() as stack:
        control = stack.enter_context(
            ControlClient(coordinator.superlink_address, authority=folder.authority.certificate)
        )
        processes = []
        for number in range(nodes):
            site = root / f"site{number}"
            key = create_node_key(site)
            control.register_node(key.public, name=site.name)
            settings = NodeSettings(
                name=site.name,
                coordinator=f"127.0.0.1:{coordinator.gateway_port}",
                authority=folder.authority.certificate,
                private_key=key.private,
                state_folder=site / "state",
                client="relay_benchmark.client_app:app",
            )
            (site / "node.toml").write_text(settings.to_toml())
            path = os.pathsep.join(map(str, (ROOT, OUR_APP, PLAIN_APP)))
            process = node_process(site / "node.toml", num_threads=1, extra={"PYTHONPATH": path})
            processes.append(stack.enter_context(process))
        for process in processes:
            process.wait_until(lambda process=process: is_connected(process), within=START_SECONDS)
        yield control, coordinator.check


@contextmanager
def plain_federation(root: Path, nodes: int) -> Iterator[tuple[ControlClient, Callable[[], None]]]:
    folder = create_coordinator_folder(root / "coordinator", names=["127.0.0.1"])
    port = free_port()
    with ExitStack() as stack:
        superlink = stack.enter_context(_stock_superlink(folder, port))
        authority = folder.authority.certificate
        superlink.wait_until(lambda: is_healthy("127.0.0.1", port, authority), within=START_SECONDS)
        control = stack.enter_context(ControlClient(f"127.0.0.1:{port}", authority=authority))
        started = [
            stack.enter_context(_stock_node(root / f"site{number}", control, authority, port))
            for number in range(nodes)
        ]
        for process in started:
            process.wait_until(lambda process=process: is_connected(process), within=START_SECONDS)
        yield control, lambda: None


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


def _stock_node(site: Path, control: ControlClient, authority: Path, port: int) -> ManagedProcess:
    key = create_node_key(site)
    control.register_node(key.public, name=site.name)
    command = [
        program("flower-supernode"),
        *("--superlink", f"127.0.0.1:{port}", "--root-certificates", str(authority)),
        *("--auth-supernode-private-key", str(key.private)),
        *("--host", "127.0.0.1", "--port", str(free_port())),
    ]
    environment = _stock_environment(site / "flower")
    return ManagedProcess(site.name, command, log_path=site / "node.log", environment=environment)


def step_seconds() -> float:
    """What the training step itself takes, once warm."""
    sys.path.insert(0, str(PLAIN_APP))
    import torch
    from plain_app.model import build, train

    torch.set_num_threads(1)
    model = build()
    train(model)
    started = time.perf_counter()
    train(model)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, object] = {
        "rounds": options.rounds,
        "nodes": options.nodes,
        "cores": os.cpu_count(),
        "load-at-start": os.getloadavg()[0],
        "step-seconds": step_seconds(),
    }
    for name, federation, app in (
        ("ours", our_federation, OUR_APP),
        ("plain-flower", plain_federation, PLAIN_APP),
    ):
        with (
            tempfile.TemporaryDirectory() as folder,
            federation(Path(folder), options.nodes) as (control, healthy),
        ):
            report = Path(folder) / "report.txt"
            rounds = timed_run(
                control, app, report, rounds=options.rounds, nodes=options.nodes, healthy=healthy
            )
        figures[name] = {"median": statistics.median(rounds), "rounds": rounds}
        print(f"{name:14s} {statistics.median(rounds):7.2f} s a round   {[round(s, 2) for s in rounds]}")
    ours, plain = (figures[name]["median"] for name in ("ours", "plain-flower"))  # type: ignore[index]
    print(f"ratio          {plain / ours:7.1f}   (the training step itself: {figures['step-seconds']:.3f} s)")
    if options.json:
        options.json.write_text(json.dumps(figures | {"ratio": plain / ours}, indent=2) + "\n")


if __name__ == "__main__":
    main()
