"""The compose files with real networks between services: who reaches whom, who writes where, and a round.

No container engine runs the services here; they are processes of this machine, each with the network, the
root, the user and the limits that the file asks for (``lab/containers.py``). prepare-compose.sh, the health
check and every command are the ones that an engine would run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from .deploy_files import read_compose
from .lab.laboratory import in_laboratory, python, why_not

USER = "23456"  # lab/federation_of_three.py
SITES = ("site-1", "site-2", "site-3")
ERRNO_READ_ONLY, ERRNO_DENIED, ERRNO_UNREACHABLE, ERRNO_REFUSED = "30", "13", "101", "111"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="network and mount namespaces here: root only")


@pytest.fixture(scope="module")
def laboratory() -> None:
    """Skips where this system has no namespaces to give."""
    if reason := why_not():
        pytest.skip(reason)


def tried(program: str, folder: Path) -> dict[str, Any]:
    """What a program of ``lab/`` saw in a laboratory of its own."""
    done = subprocess.run(
        in_laboratory(*python(program, folder)), capture_output=True, text=True, check=False, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def seen(laboratory: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one trial saw, from empty folders to the end of the last process."""
    return tried("federation_of_three.py", tmp_path_factory.mktemp("federation") / "data")


@pytest.fixture(scope="module")
def hospital(laboratory: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same for a hospital in two containers."""
    return tried("hospital_in_two.py", tmp_path_factory.mktemp("hospital") / "data")


slow = [pytest.mark.slow, pytest.mark.federated, pytest.mark.timeout(1600), root_only]


class TestTheTrialOfThreeSites:
    pytestmark = slow

    def test_a_site_reaches_the_gateway_and_nothing_else(self, seen: dict[str, Any]) -> None:
        for site in SITES:
            [(network, own)] = seen["addresses"][site].items()
            gateway = seen["addresses"]["coordinator"][network]
            assert gateway.rsplit(".", 1)[0] == own.rsplit(".", 1)[0]
            found = seen["connections"][site]
            opened = {target for target, outcome in found.items() if outcome == "open"}
            assert opened == {f"{gateway}:9443", "coordinator:9443"}
            for target, outcome in found.items():
                if target in opened:
                    continue
                same_network = target.startswith(f"{gateway}:")
                assert outcome.split()[-1] == (ERRNO_REFUSED if same_network else ERRNO_UNREACHABLE), target

    def test_every_other_site_was_tried(self, seen: dict[str, Any]) -> None:
        """So that the test before could have failed."""
        for site in SITES:
            tried = {target.rsplit(":", 1)[0] for target in seen["connections"][site]}
            for other in ("coordinator", *SITES):
                assert other == site or set(seen["addresses"][other].values()) <= tried
            assert len(seen["connections"][site]) > 6

    def test_only_the_gateway_listens_beyond_loopback(self, seen: dict[str, Any]) -> None:
        for service, addresses in seen["listening"].items():
            outside = [one for one in addresses if not one.startswith(("127.0.0.1:", "[::1]:"))]
            assert outside == (["0.0.0.0:9443"] if service == "coordinator" else [])
        assert len(seen["listening"]["coordinator"]) > 1  # the SuperLink, on loopback

    def test_nothing_runs_as_root_or_can_become_more(self, seen: dict[str, Any]) -> None:
        for service, processes in seen["processes"].items():
            assert len(processes) >= 3, service
            for process in processes:
                assert process["Uid"].split() == [USER] * 4
                assert process["Gid"].split() == [USER] * 4
                assert int(process["CapEff"], 16) == int(process["CapBnd"], 16) == 0
                assert process["NoNewPrivs"] == "1"

    def test_a_service_writes_its_own_folder_and_tmp(self, seen: dict[str, Any]) -> None:
        for service, places in seen["writable"].items():
            own = "/study" if service == "coordinator" else "/node"
            written = {place for place, outcome in places.items() if outcome == "written"}
            assert written == {own, "/tmp"}
            refused = {outcome for place, outcome in places.items() if place not in written}
            assert refused <= {ERRNO_READ_ONLY, ERRNO_DENIED}
            if service != "coordinator":
                assert places["/data"] == ERRNO_READ_ONLY

    def test_a_round_is_trained_by_all_three(self, seen: dict[str, Any]) -> None:
        events = seen["run"]["events"]
        [finished] = [event for event in events if event["event"] == "round-finished"]
        assert sorted(finished["sites"]) == list(SITES)
        assert events[-1]["event"] == "run-finished"
        assert "model.safetensors" in seen["run"]["files"]

    def test_each_stops_in_time_and_leaves_nothing(self, seen: dict[str, Any]) -> None:
        for service, found in read_compose("compose.yaml")["services"].items():
            stopped = seen["stopped"][service]
            assert stopped["seconds"] < int(found["stop_grace_period"].removesuffix("s"))
            assert stopped["state"] in ("ended", "gone")
            assert stopped["left"] == []


class TestAHospitalInTwoContainers:
    pytestmark = slow

    def test_the_worker_has_no_network_at_all(self, hospital: dict[str, Any]) -> None:
        assert hospital["interfaces"]["worker"] == ["lo"]
        assert hospital["interfaces"]["relay"] == ["eth1", "lo"]
        assert hospital["listening"]["worker"] == []
        for one in hospital["listening"]["relay"]:
            assert one.startswith("127.0.0.1:")

    def test_the_relay_is_another_user_and_sees_neither_node_nor_images(
        self, hospital: dict[str, Any]
    ) -> None:
        users = {
            name: {one["Uid"].split()[0] for one in found} for name, found in hospital["processes"].items()
        }
        assert users == {"worker": {"10001"}, "relay": {"10002"}}
        folders = hospital["folders of the relay"]
        assert "relay" in folders
        assert not {"node", "data"} & set(folders)

    def test_the_gateways_certificate_is_from_the_operators_own_authority(
        self, hospital: dict[str, Any]
    ) -> None:
        """A round was trained over it; the node trusts the root, the gateway shows what is between."""
        assert "subject=CN = IT" in hospital["trusted"]
        assert "issuer=CN = Servers" in hospital["shown"]

    def test_the_worker_answers_for_the_node(self, hospital: dict[str, Any]) -> None:
        assert hospital["status"]["worker"] == "listening"

    def test_a_round_goes_through_both(self, hospital: dict[str, Any]) -> None:
        [finished] = [event for event in hospital["run"] if event["event"] == "round-finished"]
        assert finished["sites"] == ["st-mary"]
        assert hospital["run"][-1]["event"] == "run-finished"

    def test_each_stops_in_time_and_leaves_nothing(self, hospital: dict[str, Any]) -> None:
        for stopped in hospital["stopped"].values():
            assert stopped["seconds"] < 30
            assert stopped["left"] == []


@root_only
def test_a_laboratory_ends_with_whoever_started_it(laboratory: None, tmp_path: Path) -> None:
    """Killed in the middle, it leaves no process and no name."""
    said = tmp_path / "said"
    inside = ["sh", "-c", f"ip netns add laboratory-trial; sleep 321.5 & echo up > {said}; wait"]
    program = f"import subprocess; subprocess.run({in_laboratory(*inside)!r})"
    starter = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while not said.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert said.exists()
    family = psutil.Process(starter.pid).children(recursive=True)
    assert any("321.5" in one.cmdline() for one in family)
    starter.kill()
    starter.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert not Path("/run/netns/laboratory-trial").exists()
