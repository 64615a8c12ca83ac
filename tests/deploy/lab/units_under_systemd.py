"""The units of deploy/systemd under a real systemd: a study, a site in one piece, then in two. Writes JSON.

python units_under_systemd.py FOLDER        (started by systemd, as root; become_systemd.sh)
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

BIN = Path("/opt/instahide/bin")
STUDY = Path("/var/lib/instahide-coordinator/trial")
NODE, RELAY = Path("/var/lib/instahide-node/st-mary"), Path("/var/lib/instahide-relay/st-mary")
SPLIT = Path("/opt/source/deploy/split-site.sh")
SECONDS = 300.0


def run(*words: object, check: bool = True) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{words}: {done.stdout}{done.stderr}")
    return done.stdout


def as_user(user: str, *words: object) -> str:
    """An instahide command as the documents have it: as the service's user."""
    return run(*user_command(user), *words)


def user_command(user: str) -> list[str]:
    return ["setpriv", "--reuid", user, "--regid", user, "--init-groups", str(BIN / "instahide")]


def coordinator(*words: object) -> str:
    return as_user("instahide-coordinator", "coordinator", *words)


def node(*words: object) -> str:
    return as_user("instahide-node", "node", *words)


def main(folder: Path) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    write_images(folder / "scans.npz")
    for home, user in (
        (STUDY, "instahide-coordinator"),
        (NODE, "instahide-node"),
        (RELAY, "instahide-relay"),
    ):
        run("install", "-d", "-m", "0700", "-o", user, "-g", user, home.parent)
    coordinator("init", STUDY, "--host", "127.0.0.1")
    seen["coordinator"] = start("instahide-coordinator@trial")
    node("init", NODE, "--name", "st-mary", "--data", folder / "scans.npz")
    run(
        "install",
        "-o",
        "instahide-coordinator",
        NODE / "st-mary.request.json",
        STUDY / "st-mary.request.json",
    )
    coordinator("admit", STUDY, STUDY / "st-mary.request.json")
    run("install", "-o", "instahide-node", STUDY / "st-mary.join.json", NODE / "st-mary.join.json")
    node("join", NODE, NODE / "st-mary.join.json")
    policy = NODE / "policy.toml"
    policy.write_text(
        re.sub(r"(?m)^#? *minimum-cohort-size = .*$", "minimum-cohort-size = 1", policy.read_text())
    )

    seen["node"] = start("instahide-node@st-mary")
    seen["whole run"] = train("whole")
    seen["node stopped"] = stop("instahide-node@st-mary")

    run(
        *(SPLIT, NODE, RELAY, "--worker-user", "instahide-node", "--relay-user", "instahide-relay"),
        *("--socket-group", "instahide-socket", "--relay-home", RELAY),
        *("--socket-folder", "/run/instahide-relay/st-mary"),
    )
    seen["worker"] = start("instahide-worker@st-mary")
    seen["relay"] = start("instahide-relay@st-mary")
    seen["split run"] = train("split")
    seen["inside"] = {
        "worker's interfaces": interfaces("instahide-worker@st-mary"),
        "relay's interfaces": interfaces("instahide-relay@st-mary"),
        "relay's view of the node": look("instahide-relay@st-mary", NODE),
        "relay's view of the images": look("instahide-relay@st-mary", folder / "scans.npz"),
        "worker's view of its node": look("instahide-worker@st-mary", NODE / "worker.toml"),
    }
    seen["processes"] = {
        name: settled(f"instahide-{name}")
        for name in ("coordinator@trial", "worker@st-mary", "relay@st-mary")
    }
    for name in ("relay@st-mary", "worker@st-mary", "coordinator@trial"):
        seen[f"{name} stopped"] = stop(f"instahide-{name}")
    return seen


def write_images(path: Path) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images[:300] * (255 / 16)).round().astype(np.uint8)
    np.savez(
        path,
        x_train=images[:220],
        y_train=bunch.target[:220],
        x_test=images[220:],
        y_test=bunch.target[220:300],
    )
    path.chmod(0o640)
    run("chown", "root:instahide-node", path)


def show(unit: str) -> dict[str, str]:
    keys = "ActiveState,SubState,Result,NRestarts,StatusText,MainPID,ExecMainStatus"
    lines = run("systemctl", "show", f"{unit}.service", "-p", keys).splitlines()
    return dict(line.split("=", 1) for line in lines)


def start(unit: str) -> dict[str, Any]:
    """Start a unit, which returns when it has said that it is ready (of Type=notify)."""
    started = time.monotonic()
    problem = run("sh", "-c", f"systemctl start {unit} 2>&1 || true")
    return show(unit) | {"seconds": time.monotonic() - started, "problem": problem}


def stop(unit: str) -> dict[str, Any]:
    started = time.monotonic()
    run("systemctl", "stop", unit)
    return show(unit) | {"seconds": time.monotonic() - started, "left": processes(unit)}


def train(name: str) -> dict[str, Any]:
    """One round by the one site; the last event, and what went wrong if it did."""
    words = ["--name", name, "--set", "num-server-rounds=1", "--set", "minimum-sites=1"]
    words += ["--set", "round-deadline=240", "--set", "start-deadline=240"]
    coordinator("plan", STUDY, *words, "--out", STUDY / f"{name}.plan.json")
    run("install", "-o", "instahide-node", STUDY / f"{name}.plan.json", NODE / f"{name}.plan.json")
    node("plan", "approve", NODE, "--file", NODE / f"{name}.plan.json")
    done = subprocess.run(
        [*user_command("instahide-coordinator"), "coordinator", "run", str(STUDY), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    events = (STUDY / "runs" / name / "events.jsonl").read_text().splitlines()
    return {
        "code": done.returncode,
        "last": json.loads(events[-1])["event"],
        "problem": done.stderr[-2000:],
        "worker's log": (NODE / "state/worker.log").read_text()[-2000:] if done.returncode else "",
    }


def settled(unit: str) -> list[dict[str, str]]:
    """The unit's processes; a relay that lost the coordinator is started again ten seconds later."""
    deadline = time.monotonic() + 60
    while not (found := processes(unit)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def processes(unit: str) -> list[dict[str, str]]:
    """User, capabilities, system call filter of each process of a unit."""
    group = run("systemctl", "show", f"{unit}.service", "-p", "ControlGroup", "--value").strip()
    path = Path("/sys/fs/cgroup/systemd") / group.lstrip("/") / "cgroup.procs"
    found = []
    for pid in path.read_text().split() if group and path.exists() else []:
        lines = dict(line.split(":", 1) for line in Path("/proc", pid, "status").read_text().splitlines())
        keys = ("Name", "Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
        found.append({key: lines[key].strip() for key in keys})
    return found


def _in(unit: str, kind: str, *words: object) -> str:
    pid = show(unit)["MainPID"]
    return run("nsenter", "-t", pid, kind, *words, check=False)


def interfaces(unit: str) -> list[str]:
    return sorted(re.findall(r"^\d+: ([^:@]+)", _in(unit, "-n", "ip", "link"), re.MULTILINE))


def look(unit: str, path: Path) -> str:
    """Whether the unit's user may read a path, where the unit sees it."""
    user = "instahide-relay" if "relay" in unit else "instahide-node"
    trial = f"ls {path} > /dev/null 2>&1 && head -c 1 {path} > /dev/null 2>&1 && echo read || echo refused"
    as_them = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "sh", "-c", trial]
    return _in(unit, "-m", *as_them).strip()


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1])), indent=1))
