"""The trial of compose.yaml, in a laboratory: prepare, start, look, train a round, stop. Prints JSON.

python federation_of_three.py FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import containers
import numpy as np

SITES = ("site-1", "site-2", "site-3")
COMPOSE = containers.ROOT / "deploy" / "compose.yaml"
SETTINGS = containers.ROOT / "deploy" / "experiments" / "encodings-hardened.toml"
USER = "23456"
PROBE = """
import socket, sys
for word in sys.argv[1:]:
    host, port = word.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
        print(word, "open")
    except OSError as error:
        print(word, type(error).__name__, error.errno)
"""
TOUCH = """
import sys
for path in sys.argv[1:]:
    try:
        open(path, "w").close()
        print(path, "written")
    except OSError as error:
        print(path, error.errno)
"""


def main(folder: Path) -> dict[str, Any]:
    """The whole trial; what was seen."""
    environment = {"INSTAHIDE_DATA": str(folder), "INSTAHIDE_UID": USER, "INSTAHIDE_GID": USER}
    stand_in = Path("/run/laboratory/docker")
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} {containers.__file__} "$@"\n')
    stand_in.chmod(0o755)
    os.environ.update(environment | {"DOCKER": str(stand_in)})
    prepare = [containers.ROOT / "deploy" / "prepare-compose.sh", folder]
    containers.run(*prepare)
    for number, site in enumerate(SITES):
        write_images(folder / site / "data", first=number * 300)
    containers.run(*prepare)  # root makes the new files the containers' user's, so again before the start
    table = containers.read(COMPOSE)
    for site in SITES:
        containers.start(table, site)
    for service in table["services"]:
        containers.wait_until_healthy(table, service)
    seen: dict[str, Any] = {"addresses": ADDRESSES}
    seen["connections"] = {service: connections(table, service, folder) for service in table["services"]}
    seen["listening"] = {service: listening(service) for service in table["services"]}
    seen["processes"] = {service: processes(service) for service in table["services"]}
    seen["writable"] = {service: writable(table, service) for service in table["services"]}
    seen["run"] = train(table)
    seen["stopped"] = {service: stop(service) for service in (*SITES, "coordinator")}
    return seen


def write_images(folder: Path, *, first: int, owner: int = int(USER)) -> None:
    """Digits that ship with scikit-learn; each site has its own, and the public ones are nobody's."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)
    middle, last = first + 200, first + 260
    np.savez(
        folder / "training.npz",
        x_train=images[first:middle],
        y_train=bunch.target[first:middle],
        x_test=images[middle:last],
        y_test=bunch.target[middle:last],
    )
    np.savez(folder / "public.npz", x=images[1400:])
    for path in (folder, *folder.iterdir()):
        os.chown(path, owner, owner)


def inside(table: dict[str, Any], service: str, *words: object) -> str:
    return containers.run(*containers.confined(service, table["services"][service], [*map(str, words)]))


def connections(table: dict[str, Any], service: str, folder: Path) -> dict[str, str]:
    """What this service gets when it connects to every port that listens anywhere, on every address."""
    ports = {9443, json.loads((folder / "coordinator/instance.json").read_text())["port"]}
    ports |= {int(line.rsplit(":", 1)[1]) for name in table["services"] for line in listening(name)}
    targets = [
        f"{address}:{port}"
        for name, networks in ADDRESSES.items()
        if name != service
        for address in networks.values()
        for port in sorted(ports)
    ]
    lines = inside(table, service, "python", "-c", PROBE, *targets, "coordinator:9443").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def listening(service: str) -> list[str]:
    """Addresses with ports on which something in this service's namespace takes TCP connections."""
    lines = containers.run(
        "ip", "netns", "exec", service, "ss", "--tcp", "--listening", "--numeric", "--no-header"
    )
    return sorted(line.split()[3] for line in lines.splitlines())


def processes(service: str) -> list[dict[str, str]]:
    """User, groups, capabilities and privileges of everything that runs in this service."""
    found = []
    for pid in containers.run("ip", "netns", "pids", service).split():
        status = Path("/proc", pid, "status").read_text()
        keys = ("Name", "Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs")
        lines = dict(line.split(":", 1) for line in status.splitlines())
        found.append({key: lines[key].strip() for key in keys})
    return found


def writable(table: dict[str, Any], service: str) -> dict[str, str]:
    """Where this service may write, of the places one would try."""
    targets = [mount["target"] for mount in table["services"][service]["volumes"]]
    places = ["/", "/usr", "/etc", "/opt", "/tmp", sys.prefix, *targets]
    lines = inside(
        table, service, "python", "-c", TOUCH, *(f"{place}/.trial" for place in places)
    ).splitlines()
    for target in [*targets, "/tmp"]:
        inside(table, service, "rm", "-f", f"{target}/.trial")
    return {line.split("/.trial ")[0] or "/": line.split("/.trial ")[1] for line in lines}


def folder_of(table: dict[str, Any], service: str) -> Path:
    """The study's or the node's folder on the host."""
    return Path(table["services"][service]["volumes"][0]["source"])


def train(table: dict[str, Any]) -> dict[str, Any]:
    """Plan, approve at each site, one round over all three."""
    study = folder_of(table, "coordinator")
    (study / "settings.toml").write_bytes(SETTINGS.read_bytes())
    os.chown(study / "settings.toml", int(USER), int(USER))
    words = ["--name", "trial", "--config", "/study/settings.toml", "--set", "num-server-rounds=1"]
    words += ["--set", "minimum-sites=3", "--set", "round-deadline=240"]
    coordinator = ("instahide", "coordinator")
    inside(table, "coordinator", *coordinator, "plan", "/study", *words, "--out", "/study/trial.plan.json")
    for site in SITES:
        node = folder_of(table, site)
        (node / "trial.plan.json").write_bytes((study / "trial.plan.json").read_bytes())
        os.chown(node / "trial.plan.json", int(USER), int(USER))
        inside(
            table, site, "instahide", "node", "plan", "approve", "/node", "--file", "/node/trial.plan.json"
        )
    inside(table, "coordinator", *coordinator, "run", "/study", *words)
    events = (study / "runs/trial/events.jsonl").read_text().splitlines()
    return {
        "events": [json.loads(line) for line in events],
        "files": sorted(path.name for path in (study / "runs/trial").iterdir()),
    }


def stop(service: str) -> dict[str, Any]:
    """SIGTERM as an engine sends it to process 1 (what starts a service replaces itself by it, so its process
    id is the service's); seconds until it has ended, and what was left of it."""
    pid = int(Path(f"/run/laboratory/{service}.pid").read_text())
    started = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    while (state := state_of(pid)) not in ("gone", "ended") and time.monotonic() - started < 60:
        time.sleep(0.1)
    seconds = time.monotonic() - started
    time.sleep(0.5)
    left = containers.run("ip", "netns", "pids", service).split()
    words = [Path("/proc", one, "cmdline").read_text() for one in left if state_of(int(one)) == "running"]
    return {"state": state, "seconds": seconds, "left": words}


def state_of(pid: int) -> str:
    """ "running", "ended" (and not yet buried by who started it) or "gone"."""
    try:
        fields = Path("/proc", str(pid), "stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    return "ended" if fields[0] == "Z" else "running"


if __name__ == "__main__":
    COMPOSED = containers.read(COMPOSE)
    ADDRESSES = containers.networks_up(COMPOSED)
    print(json.dumps(main(Path(sys.argv[1]))))
