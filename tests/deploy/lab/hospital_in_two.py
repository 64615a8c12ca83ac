"""compose.coordinator.yaml and compose.hospital.yaml in a laboratory: a site in two halves. Prints JSON.

python hospital_in_two.py FOLDER
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import containers
from federation_of_three import USER, inside, listening, processes, stop, write_images

WORKER = 10001
DEPLOY = containers.ROOT / "deploy"


def composed(folder: Path) -> dict[str, Any]:
    """Both files as one, which share a network here as they would share the world outside."""
    names = {"STUDY": "study", "NODE": "node", "RELAY": "relay", "IMAGES": "images"}
    os.environ.update({f"INSTAHIDE_{name}": str(folder / place) for name, place in names.items()})
    os.environ.update({"INSTAHIDE_UID": USER, "INSTAHIDE_GID": USER})
    table = containers.read(DEPLOY / "compose.hospital.yaml")
    outside = containers.read(DEPLOY / "compose.coordinator.yaml")["services"]["coordinator"]
    table["services"]["coordinator"] = outside | {"networks": ["coordinator"]}
    return table


def main(folder: Path, table: dict[str, Any]) -> dict[str, Any]:
    """From empty folders to a round; what was seen."""
    for name, owner in (("study", int(USER)), ("node", WORKER), ("images", WORKER)):
        (folder / name).mkdir(parents=True)
        os.chown(folder / name, owner, owner)
    folder.chmod(0o755)
    write_images(folder / "images", first=0, owner=WORKER)
    node, study = folder / "node", folder / "study"

    inside(table, "coordinator", "instahide", "coordinator", "init", "/study", "--host", "coordinator")
    containers.start(table, "coordinator")
    containers.wait_until_healthy(table, "coordinator")
    words = ["--name", "st-mary", "--data", "/data/training.npz", "--public", "/data/public.npz"]
    inside(table, "worker", "instahide", "node", "init", "/node", *words)
    hand_over(node / "st-mary.request.json", study, int(USER))
    inside(table, "coordinator", "instahide", "coordinator", "admit", "/study", "/study/st-mary.request.json")
    hand_over(study / "st-mary.join.json", node, WORKER)
    inside(table, "worker", "instahide", "node", "join", "/node", "/node/st-mary.join.json")
    policy = node / "policy.toml"
    policy.write_text(
        re.sub(r"(?m)^#? *minimum-cohort-size = .*$", "minimum-cohort-size = 1", policy.read_text())
    )
    containers.run(DEPLOY / "split-site.sh", node, folder / "relay")

    for service in ("worker", "relay"):
        containers.start(table, service)
        containers.wait_until_healthy(table, service)
    seen: dict[str, Any] = {
        "processes": {service: processes(service) for service in ("worker", "relay")},
        "listening": {service: listening(service) for service in ("worker", "relay")},
        "interfaces": {service: interfaces(service) for service in ("worker", "relay")},
        "folders of the relay": inside(table, "relay", "ls", "/").split(),
        "status": json.loads(
            inside(table, "worker", "instahide", "node", "status", "/node", "--format", "json")
        ),
        "run": train(table, study, node),
    }
    seen["stopped"] = {service: stop(service) for service in ("relay", "worker", "coordinator")}
    return seen


def hand_over(source: Path, folder: Path, owner: int) -> None:
    """What is an e-mail between two hospitals."""
    target = folder / source.name
    target.write_bytes(source.read_bytes())
    os.chown(target, owner, owner)


def interfaces(service: str) -> list[str]:
    lines = containers.run("ip", "-n", service, "link")
    return sorted(re.findall(r"^\d+: ([^:@]+)", lines, re.MULTILINE))


def train(table: dict[str, Any], study: Path, node: Path) -> list[dict[str, Any]]:
    """One round by the one site; the run's events."""
    words = ["--name", "trial", "--set", "num-server-rounds=1", "--set", "minimum-sites=1"]
    words += ["--set", "round-deadline=240"]
    coordinator = ("instahide", "coordinator")
    inside(table, "coordinator", *coordinator, "plan", "/study", *words, "--out", "/study/trial.plan.json")
    hand_over(study / "trial.plan.json", node, WORKER)
    inside(
        table, "worker", "instahide", "node", "plan", "approve", "/node", "--file", "/node/trial.plan.json"
    )
    inside(table, "coordinator", *coordinator, "run", "/study", *words)
    return [json.loads(line) for line in (study / "runs/trial/events.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    PLACE = Path(sys.argv[1])
    TABLE = composed(PLACE)
    containers.networks_up(TABLE)
    print(json.dumps(main(PLACE, TABLE)))
