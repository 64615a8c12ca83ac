"""What needs namespaces of its own: a program is run in a laboratory that vanishes with it, whatever ends it.

The laboratory has its own network, mounts, processes and ``/run``: names given there (network namespaces,
roots) are known nowhere else. Its first process is a shell that buries orphans; when that ends, or is
killed because whoever started it died, the kernel ends everything in there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NEEDED = ("ip", "unshare", "setpriv", "prlimit", "chroot")
_SHELL = """
set -eu
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/laboratory /run/netns
ip link set lo up
"$@" || exit  # not the last command: bash would put it in its own place, and bury nobody
exit 0
"""


def in_laboratory(*words: object) -> list[str]:
    """The command that runs ``words`` in a laboratory (root only)."""
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--net", "--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("bash", "-c", _SHELL, "laboratory", *map(str, words)),
    ]


def why_not() -> str:
    """Why there can be no laboratory here; empty where there can."""
    from shutil import which

    missing = [name for name in NEEDED if which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    trial = in_laboratory(
        "sh", "-c", "ip netns add trial && ip link add left type veth peer name right netns trial"
    )
    done = subprocess.run(trial, capture_output=True, text=True, check=False)
    return (
        "" if done.returncode == 0 else f"network namespaces are not permitted: {done.stderr.strip()[-200:]}"
    )


def python(program: str, *words: object) -> list[object]:
    """A program of this folder, under this Python."""
    return [sys.executable, Path(__file__).with_name(program), *words]
