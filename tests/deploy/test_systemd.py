"""The systemd units: understood by systemd, as tight as the documents say, and starting what exists."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from federation.supervision import STOP_SECONDS

from .deploy_files import DEPLOY, parses, tool

FOLDER = DEPLOY / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
INSTALLED = "/opt/instahide/bin"
HARDENED = {
    "UMask": "0077",
    "LimitCORE": "0",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectControlGroups": "yes",
    "ProtectClock": "yes",
    "ProtectHostname": "yes",
    "ProtectProc": "invisible",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "SystemCallArchitectures": "native",
}


def settings(unit: Path) -> dict[str, list[str]]:
    """Every setting of a unit file with its values in order, sections put together."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        if "=" in line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def name_of(path: Path) -> str:
    return path.name


@cache
def measured_exposure(unit: Path) -> float:
    done = subprocess.run(
        [tool("systemd-analyze"), "security", "--offline=yes", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found[1])


def test_the_units_are_the_ones_meant() -> None:
    assert [path.name for path in UNITS] == [
        f"instahide-{name}@.service" for name in ("coordinator", "node", "relay", "worker")
    ]


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_each_is_hardened(unit: Path) -> None:
    found = settings(unit)
    for key, value in HARDENED.items():
        assert found[key] == [value], key
    assert found["User"] != ["root"]
    assert found["SystemCallFilter"][0] == "@system-service"
    assert "~@privileged @keyring" in found["SystemCallFilter"]
    assert "MemoryMax" in found
    assert found["RestartPreventExitStatus"] == ["2 3 4"]


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_each_may_write_one_folder_its_own(unit: Path) -> None:
    found = settings(unit)
    [folder] = found["StateDirectory"]
    assert found["ReadWritePaths"] == [f"/var/lib/{folder}"]
    assert found["StateDirectoryMode"] == ["0700"]


def test_every_user_and_group_is_made_by_the_sysusers_file() -> None:
    lines = (FOLDER / "instahide.sysusers.conf").read_text(encoding="utf-8").splitlines()
    made = {line.split()[1] for line in lines if line[:2] in ("u ", "g ")}
    for unit in UNITS:
        found = settings(unit)
        named = found["User"] + found["Group"] + found.get("SupplementaryGroups", [])
        assert set(named) <= made


def test_the_worker_has_no_network_and_the_relay_sees_only_the_socket_of_the_node() -> None:
    worker, relay = (settings(FOLDER / f"instahide-{name}@.service") for name in ("worker", "relay"))
    assert worker["PrivateNetwork"] == ["yes"]
    assert worker["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert relay["BindPaths"] == ["/var/lib/instahide-node/%i/state/relay:/run/instahide-relay/%i"]
    assert worker["User"] != relay["User"]
    assert worker["SupplementaryGroups"] == relay["SupplementaryGroups"]
    for unit in (worker, relay):  # the socket asks the kernel which user is at the other end
        assert "PrivateUsers" not in unit


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_it_starts_a_command_that_exists(unit: Path) -> None:
    [start] = settings(unit)["ExecStart"]
    program, *words = start.split()
    assert program.startswith(INSTALLED)
    if program.endswith("/instahide"):
        parses(words)
        assert settings(unit)["Type"] == ["notify"]
    else:
        assert words[0] == "-m"
        assert find_spec(words[1]) is not None
        assert settings(unit)["Type"] == ["exec"]  # these two modules do not speak to the manager


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_there_is_time_for_an_orderly_end(unit: Path) -> None:
    [seconds] = settings(unit)["TimeoutStopSec"]
    assert int(seconds) > 3 * STOP_SECONDS
    assert settings(unit)["KillMode"] == ["mixed"]


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_commands_in_the_comments_exist(unit: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    for words in re.findall(r"bin/instahide ((?:coordinator|node) .+)$", text, re.MULTILINE):
        parses(words.split())
    for script in re.findall(r"deploy/[\w-]+\.sh", text):
        assert (DEPLOY.parent / script).exists()


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_systemd_verifies_it(unit: Path, tmp_path: Path) -> None:
    """As installed here: the paths of the programs are those of this environment."""
    for each in UNITS:
        text = each.read_text(encoding="utf-8").replace(INSTALLED, str(Path(sys.executable).parent))
        (tmp_path / each.name).write_text(text)
    instance = unit.name.replace("@", "@trial")
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", tmp_path / instance],
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    about_ours = [line for line in done.stderr.splitlines() if "instahide" in line]
    assert (done.returncode, about_ours) == (0, [])


def test_systemd_would_find_a_wrong_setting(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.service"
    wrong.write_text("[Service]\nExecStart=/bin/true\nProtectSystemm=strict\nTimeoutStopSec=soon\n")
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", wrong], capture_output=True, text=True, check=False
    )
    assert "ProtectSystemm" in done.stderr
    assert "Failed to parse time value" in done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_its_exposure_is_the_figure_in_the_documents(unit: Path) -> None:
    """systemd's own scale: 0 nothing exposed, 10 all; figures differ by a tenth or two between releases."""
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    stated = re.search(rf"`{re.escape(unit.name)}` \| ([\d.]+) \|", text)
    assert stated, unit.name
    assert measured_exposure(unit) == pytest.approx(float(stated[1]), abs=0.3)
    assert measured_exposure(unit) < 2.0
