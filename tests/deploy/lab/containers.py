"""Containers without an engine: a compose file's services as processes of this machine, confined as it says.

    python containers.py compose -f FILE run --rm SERVICE WORDS...    (as prepare-compose.sh calls docker)

Runs inside a laboratory (``laboratory.py``): network, mount and process namespaces that vanish with it.
A service gets a network namespace with one veth for each of its networks, each network being a bridge
without address or way out; a root of its own made of read-only binds, with the file's folders and tmpfs
mounted where it says; the file's user and groups; no capability; no new privileges; and the image's
environment. What a kernel can refuse to a container it refuses here.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
HEALTH = ROOT / "deploy" / "container" / "instahide-health"
LAB = Path("/run/laboratory")
HEALTHY_SECONDS = 240.0
SYSTEM = ("usr", "bin", "sbin", "lib", "lib64", "etc")
PROGRAMS = {Path(sys.prefix), Path(sys.base_prefix), ROOT}


def run(*words: object, check: bool = True) -> str:
    """A command's output. Raises CalledProcessError, with its errors, if it fails."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, words))}: {done.stdout}{done.stderr}")
    return done.stdout


def read(path: Path) -> dict[str, Any]:
    """A compose file with variables from the environment or their defaults; sources as absolute paths."""
    text = re.sub(
        r"\$\{(\w+):-([^}]*)\}",
        lambda found: os.environ.get(found[1]) or found[2],
        path.read_text(encoding="utf-8"),
    )
    table: dict[str, Any] = yaml.safe_load(text)
    for service in table["services"].values():
        for mount in service["volumes"]:
            mount["source"] = str((path.parent / mount["source"]).resolve())
    return table


def networks_up(table: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Make the bridges and every service's namespace; each service's addresses by network."""
    addresses: dict[str, dict[str, str]] = {name: {} for name in table["services"]}
    for service in addresses:
        run("ip", "netns", "add", service)
        run("ip", "-n", service, "link", "set", "lo", "up")
    for number, network in enumerate(table["networks"], start=1):
        bridge = f"br{number}"
        run("ip", "link", "add", bridge, "type", "bridge")
        run("ip", "link", "set", bridge, "up")
        members = [name for name, found in table["services"].items() if network in found.get("networks", [])]
        for place, service in enumerate(members, start=1):
            outer, inner, address = f"v{number}x{place}", f"eth{number}", f"10.77.{number}.{place}"
            run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", service)
            run("ip", "link", "set", outer, "master", bridge, "up")
            run("ip", "-n", service, "address", "add", f"{address}/24", "dev", inner)
            run("ip", "-n", service, "link", "set", inner, "up")
            addresses[service][network] = address
    for service, own in addresses.items():
        hosts = ["127.0.0.1 localhost"]
        hosts += [f"{other[net]} {name}" for name, other in addresses.items() for net in own if net in other]
        (LAB / f"{service}.hosts").write_text("\n".join(hosts) + "\n")
    return addresses


def image_environment() -> dict[str, str]:
    """The ENV of the image's last stage, with this machine's programs where the image has its own."""
    last = DOCKERFILE.read_text(encoding="utf-8").rsplit("\nFROM ", 1)[1].replace("\\\n", " ")
    [line] = [line for line in last.splitlines() if line.startswith("ENV ")]
    values = dict(word.split("=", 1) for word in line.split()[1:])
    return values | {"PATH": f"{sys.prefix}/bin:/opt:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


def confined(service: str, found: Mapping[str, Any], words: list[str]) -> list[str]:
    """The command that runs ``words`` as this service: its network, its root, its user, and nothing more."""
    user, group = found["user"].split(":")
    groups = ",".join([group, *found.get("group_add", [])])
    values = image_environment() | found.get("environment", {})
    program = [
        *("chroot", "{root}", "setpriv", "--reuid", user, "--regid", group, "--groups", groups),
        *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"),
        *(
            "prlimit",
            "--core=0",
            "env",
            "-i",
            "-C",
            "/tmp",
            *(f"{key}={value}" for key, value in values.items()),
        ),
        *words,
    ]
    script = "\n".join(["set -eu", "umask 022", *_mounts(service, found), f"exec {shlex.join(program)}"])
    script = script.replace("{root}", f"{LAB}/{service}.root")
    return ["ip", "netns", "exec", service, "unshare", "--mount", "sh", "-c", script]


def _mounts(service: str, found: Mapping[str, Any]) -> list[str]:
    """Shell lines that put a service's root together in a mount namespace of its own."""
    lines = ["mkdir -p {root}", "mount -t tmpfs -o mode=755 tmpfs {root}"]

    def bind(source: Path | str, target: str, *, read_only: bool = True) -> None:
        kind = "mkdir -p" if Path(source).is_dir() else "touch"
        lines.append(
            f"mkdir -p {{root}}{Path(target).parent}; [ -e {{root}}{target} ] || {kind} {{root}}{target}"
        )
        lines.append(f"mount --bind {shlex.quote(str(source))} {{root}}{target}")
        if read_only:
            lines.append(f"mount -o remount,bind,ro,nosuid {{root}}{target}")

    for name in SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            lines.append(f"ln -s {path.readlink()} {{root}}/{name}")
        elif path.exists():
            bind(path, f"/{name}")
    for line in found["tmpfs"]:
        target, _, options = line.partition(":")
        lines.append(f"mkdir -p {{root}}{target} && mount -t tmpfs -o {options} tmpfs {{root}}{target}")
    for path in sorted(PROGRAMS):  # after /tmp, in which a checkout may be
        bind(path, str(path))
    bind(HEALTH, "/opt/instahide-health")
    bind(LAB / f"{service}.hosts", "/etc/hosts")
    for device in ("null", "zero", "urandom", "random"):
        bind(f"/dev/{device}", f"/dev/{device}", read_only=False)
    lines.append("mkdir -p {root}/proc && mount -t proc -o nosuid,nodev,noexec proc {root}/proc")
    for mount in found["volumes"]:
        bind(mount["source"], mount["target"], read_only=mount.get("read_only", False))
    if found["read_only"]:
        lines.append("mount -o remount,ro,nosuid,nodev {root}")
    return lines


def words_of(found: Mapping[str, Any], words: list[str] | None = None) -> list[str]:
    """Entry point and command, as the image has them; tini, process 1 there, is left out."""
    entry = found.get("entrypoint", ["tini", "--", "instahide"])
    command = words if words is not None else found.get("command", [])
    return [*entry[2:], *command]


def start(table: Mapping[str, Any], service: str) -> int:
    """Start a service in the background, its output in a file of the laboratory; its process id."""
    found = table["services"][service]
    with (LAB / f"{service}.log").open("ab") as log:
        process = subprocess.Popen(
            confined(service, found, words_of(found)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (LAB / f"{service}.pid").write_text(str(process.pid))
    return process.pid


def wait_until_healthy(table: Mapping[str, Any], service: str) -> None:
    """Wait for the image's health check. Raises RuntimeError, with the log's end, if it does not come."""
    deadline = time.monotonic() + HEALTHY_SECONDS
    while True:
        asked = subprocess.run(
            confined(service, table["services"][service], ["instahide-health"]),
            capture_output=True,
            text=True,
        )
        if asked.returncode == 0:
            return
        ended = not Path("/proc", (LAB / f"{service}.pid").read_text()).exists()
        if ended or time.monotonic() > deadline:
            log = (LAB / f"{service}.log").read_text()[-3000:]
            raise RuntimeError(f"{service} is not healthy: {asked.stdout}{asked.stderr}\n{log}")
        time.sleep(1.0)


def main(words: list[str]) -> int:
    """``compose -f FILE VERB ...`` for the verbs that deploy/'s scripts use."""
    _, _, file, verb, *rest = words
    table = read(Path(file))
    options = list(takewhile(lambda word: word.startswith("-"), rest))
    names = rest[len(options) :]
    if verb == "up":
        for service in names:
            start(table, service)
        if "--wait" in options:
            for service in names:
                wait_until_healthy(table, service)
        return 0
    service, *inside = names
    found = table["services"][service]
    inside = words_of(found, inside) if verb == "run" else inside
    return subprocess.run(confined(service, found, inside), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
