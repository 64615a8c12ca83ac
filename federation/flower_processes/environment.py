"""The environment every Flower program is started in, and where the programs lie.

Left alone, Flower's programs look up ``telemetry`` and ``api`` hosts of its vendor and run a
package installer for every run. Three switches stop that, and they are set for every child.
Proxy variables are dropped, because coordinator traffic is loopback or a named gateway, and a
proxy picked up from a shell profile would carry it elsewhere.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from instahide.errors import FederationError

OFFLINE_SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "no_proxy")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
TASK_POLL_SECONDS = 0.25


def flower_environment(
    home: Path,
    *,
    num_threads: int | None = None,
    task_poll_seconds: float = TASK_POLL_SECONDS,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Environment variables of a Flower child whose private folder is ``home`` (made, 0700).

    ``num_threads`` caps the numeric libraries; ``extra`` is added last and may not undo an
    offline switch.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    inherited = {key: value for key, value in os.environ.items() if not _left_behind(key)}
    inherited["PATH"] = os.pathsep.join(
        part for part in (str(scripts_folder()), os.environ.get("PATH")) if part
    )
    inherited["FLWR_HOME"] = str(home)
    inherited["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = str(task_poll_seconds)
    inherited["PYTHONUNBUFFERED"] = "1"
    if num_threads is not None:
        inherited.update(dict.fromkeys(THREAD_VARIABLES, str(num_threads)))
    return inherited | dict(extra or {}) | OFFLINE_SWITCHES


def _left_behind(name: str) -> bool:
    return name.lower() in PROXY_VARIABLES or name.startswith("FLWR_")


def scripts_folder() -> Path:
    """The folder of the installed console scripts (``.venv/bin``)."""
    return Path(sysconfig.get_path("scripts"))


def program(name: str) -> str:
    """Absolute path of one of Flower's console scripts, such as ``flower-superlink``.

    Raises FederationError if it is not installed beside this Python.
    """
    path = scripts_folder() / name
    if not path.is_file():
        raise FederationError(f"{path} is missing", hint="install the project again: `make setup`")
    return str(path)


@contextmanager
def without_proxies() -> Iterator[None]:
    """Hide proxy variables while an HTTP client that would read them is made."""
    hidden = {key: os.environ.pop(key) for key in list(os.environ) if key.lower() in PROXY_VARIABLES}
    try:
        yield
    finally:
        os.environ.update(hidden)
