"""Clocks that are wrong: runs do not depend on them, certificates do, and then the error says so."""

from __future__ import annotations

import ast
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from federation.flower_processes.node import explain_node_exit
from federation.provisioning import create_authority, issue_server_certificate

from . import fault_library
from .scoreboard import Recorder, Timer

PRODUCT = Path(__file__).resolve().parents[2]
HOUR, DAY = 3600, 86_400

# Where the product asks what time it is: stamps for people, certificates' validity, checks of clocks.
STAMPS = {
    "federation/audit_log.py",  # never behind the record before; a clock put back is recorded
    "federation/commands/status.py",  # how long ago things were, for people
    "federation/coordinator/events.py",
    "federation/doctor/files.py",  # how long certificates are valid
    "federation/doctor/machine.py",  # whether the clock jumps
    "federation/doctor/network.py",  # how far the other side's clock is off
    "federation/doctor/registration.py",  # signed, to show that the key is the registered one
    "federation/flower_processes/superlink.py",
    "federation/foreground.py",
    "federation/privacy_ledger.py",
    "federation/provisioning.py",  # certificates
    "federation/renewal.py",  # names of what is put aside
    "federation/site/plans.py",
    "federation/status/node_writer.py",
    "federation/status/study_writer.py",
    "instahide/exposure.py",
}


def perform(
    action: str, folder: Path, library: Path, *words: object, shift_clock: int
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.chaos.perform", action, str(folder), *map(str, words)]
    environment = fault_library.environment(library, shift_clock=shift_clock)
    return subprocess.run(command, env=environment, cwd=PRODUCT, capture_output=True, text=True)


def killed_and_resumed(action: str, folder: Path, library: Path, first: int, second: int) -> Any:
    """What an action leaves that is killed under one clock and done again under another."""
    ended = perform(action, folder, library, "--prepare", "--kill-at", 70, shift_clock=first)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    ended = perform(action, folder, library, "--again", shift_clock=second)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize(("first", "second"), [(DAY, -DAY), (-HOUR, HOUR)])
def test_a_run_resumed_under_another_clock_has_equal_bits(
    first: int, second: int, tmp_path: Path, faults: Path, chaos: Recorder
) -> None:
    """And its audit log still holds, with the clock's jump in it."""
    undisturbed = perform("coordinator-run", tmp_path / "plain", faults, "--prepare", shift_clock=0)
    assert undisturbed.returncode == 0, undisturbed.stderr
    case = f"coordinator {first / HOUR:+.0f} h, resumed at {second / HOUR:+.0f} h"
    with chaos.attempt("clock skew", case) as attempt:
        timer = Timer()
        found = killed_and_resumed("coordinator-run", tmp_path / "skewed", faults, first, second)
        attempt.seconds = timer.seconds
        assert found == json.loads(undisturbed.stdout)
        assert found["audit problems"] == []


@pytest.mark.nightly
@pytest.mark.parametrize(("first", "second"), [(DAY, -DAY), (-HOUR, HOUR)])
def test_a_site_serves_on_under_another_clock(
    first: int, second: int, tmp_path: Path, faults: Path, chaos: Recorder
) -> None:
    with chaos.attempt("clock skew", f"site {first / HOUR:+.0f} h, then {second / HOUR:+.0f} h"):
        found = killed_and_resumed("site-round", tmp_path / "site", faults, first, second)
        assert found["audit problems"] == []
        assert found["exposures"] == [1]


def test_the_time_of_day_is_asked_for_stamps_only(chaos: Recorder) -> None:
    """Deadlines and pauses go by the monotonic clock; whoever adds a use of the other must look here."""
    users = set()
    for path in [*PRODUCT.glob("federation/**/*.py"), *PRODUCT.glob("instahide/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                asked = (node.value.id, node.attr)
                if asked in {
                    ("time", "time"),
                    ("datetime", "now"),
                    ("datetime", "utcnow"),
                    ("date", "today"),
                }:
                    users.add(path.relative_to(PRODUCT).as_posix())
    with chaos.attempt("clock skew", "uses of the time of day"):
        assert users == STAMPS


@pytest.mark.parametrize(
    ("starting", "words"),
    [
        (timedelta(hours=1), "not valid yet"),
        (timedelta(days=1), "not valid yet"),
        (-timedelta(days=2), "expired"),
    ],
)
def test_a_node_whose_clock_disagrees_with_the_certificate_is_told_so(
    starting: timedelta, words: str, tmp_path: Path, chaos: Recorder
) -> None:
    """A TLS listener stands in for the gateway; the words are OpenSSL's, read as a node's output is."""
    authority = create_authority(tmp_path)
    shown = issue_server_certificate(
        authority, tmp_path, names=["127.0.0.1"], starting=datetime.now(UTC) + starting, days=1
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(shown.certificate, shown.key)
    listener = socket.create_server(("127.0.0.1", 0))

    def accept_one() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                server.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

    thread = threading.Thread(target=accept_one)
    thread.start()
    client = ssl.create_default_context(cafile=str(authority.certificate))
    with (
        chaos.attempt("clock skew", f"certificate {words} by the node's clock"),
        listener,
        socket.create_connection(listener.getsockname()) as connection,
    ):
        with pytest.raises(ssl.SSLCertVerificationError) as refused:
            client.wrap_socket(connection, server_hostname="127.0.0.1")
        thread.join()
        assert words in str(explain_node_exit(5, str(refused.value)))
