"""What ``instahide node start`` says about itself to other commands: ``state/service.json``.

Whether the coordinator has admitted this start of the node, only the verb that started it knows.
It writes a few words whenever that changes; who reads them checks that the process that wrote them
is still there (process number *and* start time).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psutil

from instahide.atomic import atomic_write_text

from ..messages import one_line

SERVICE_FILE: Final = "service.json"
CONNECTING, CONNECTED, RETRYING, DOWN = "connecting", "connected", "retrying", "down"
UNKNOWN: Final = "unknown"
STATES: Final = (CONNECTING, CONNECTED, RETRYING, DOWN)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """``state`` since ``since`` (RFC 3339); ``reason`` says why it is not "connected"."""

    state: str
    since: str = ""
    reason: str = ""


def write_connection(state_folder: Path, state: str, now: datetime, *, reason: str = "") -> Connection:
    """Write down where the connection stands. Raises OSError if that cannot be written."""
    connection = Connection(state=state, since=f"{now:%Y-%m-%dT%H:%M:%SZ}", reason=one_line(reason))
    process = {"pid": os.getpid(), "started": psutil.Process().create_time()}
    text = json.dumps(asdict(connection) | process, indent=2) + "\n"
    atomic_write_text(state_folder / SERVICE_FILE, text, mode=0o600)
    return connection


def read_connection(state_folder: Path) -> Connection:
    """What was written last; "down" if its writer is gone, "unknown" where there never was one.

    Worker and relay that were started apart, as two services, have none.
    """
    try:
        table: Any = json.loads((state_folder / SERVICE_FILE).read_text(encoding="utf-8"))
        state, since, reason = (str(table[key]) for key in ("state", "since", "reason"))
        pid, started = int(table["pid"]), float(table["started"])
    except FileNotFoundError:
        return Connection(state=UNKNOWN, reason="`instahide node start` was never used here")
    except (OSError, ValueError, KeyError, TypeError):
        return Connection(state=DOWN, reason=f"{SERVICE_FILE} cannot be read")
    if not _is_alive(pid, started):
        return Connection(state=DOWN, since=since, reason="`instahide node start` was killed")
    return Connection(state=state if state in STATES else DOWN, since=since, reason=reason)


def _is_alive(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < 1.0)
    except psutil.NoSuchProcess:
        return False
