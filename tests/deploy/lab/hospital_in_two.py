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

    own = own_certificate(folder / "authority", study)
    inside(table, "coordinator", "instahide", "coordinator", "init", "/study", "--host", "coordinator", *own)
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
        "trusted": certificate_name(folder / "relay/authority.crt"),
        "shown": certificate_name(study / "gateway.crt"),
        "run": train(table, study, node),
    }
    seen["stopped"] = {service: stop(service) for service in ("relay", "worker", "coordinator")}
    return seen


def own_certificate(folder: Path, study: Path) -> list[str]:
    """A gateway certificate from the operator's own root and intermediate; the options of `init`."""
    script = DEPLOY / "certificates.sh"
    containers.run(script, "request", folder / "gateway", "coordinator")
    new = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    root, middle, leaf = folder / "root.pem", folder / "middle.pem", folder / "gateway/gateway.crt"
    containers.run(
        *new, "-x509", "-days", 30, "-subj", "/CN=IT", *usage, "-keyout", folder / "root.key", "-out", root
    )
    containers.run(
        *new, "-subj", "/CN=Servers", "-keyout", folder / "middle.key", "-out", folder / "middle.csr"
    )
    authority, server = folder / "authority.ext", folder / "server.ext"
    keys = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    authority.write_text(f"basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\n{keys}")
    server.write_text(f"basicConstraints=critical,CA:false\n{keys}")
    for request, signer, extensions, out, more in (
        (folder / "middle.csr", "root", authority, middle, []),
        (folder / "gateway/gateway.csr", "middle", server, leaf, ["-copy_extensions", "copy"]),
    ):
        by = ["-CA", folder / f"{signer}.pem", "-CAkey", folder / f"{signer}.key", "-CAcreateserial"]
        sign = [
            "openssl",
            "x509",
            "-req",
            "-in",
            request,
            *by,
            "-days",
            20,
            "-extfile",
            extensions,
            "-out",
            out,
        ]
        containers.run(*sign, *more)
    whole, key = folder / "gateway/whole.pem", folder / "gateway/gateway.key"
    containers.run(script, "chain", whole, leaf, middle)
    containers.run(script, "check", whole, key, root, "coordinator")
    for path in (whole, key, root):
        hand_over(path, study, int(USER))
        (study / path.name).chmod(0o600)
    names = {"--certificate-file": whole, "--key-file": key, "--ca-file": root}
    # `init` writes gateway.key itself, so the one that was made goes in under another name.
    (study / key.name).rename(study / "from-it.key")
    files = {option: path.name for option, path in names.items()} | {"--key-file": "from-it.key"}
    return [word for option, name in files.items() for word in (option, f"/study/{name}")]


def hand_over(source: Path, folder: Path, owner: int) -> None:
    """What is an e-mail between two hospitals."""
    target = folder / source.name
    target.write_bytes(source.read_bytes())
    os.chown(target, owner, owner)


def certificate_name(path: Path) -> str:
    """Subject and issuer, as openssl prints them."""
    return containers.run("openssl", "x509", "-in", path, "-noout", "-subject", "-issuer")


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
