"""The compose files: every service locked down, every site alone with the coordinator, no secret in sight."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import pytest
import yaml

from federation.flower_processes.superlink import create_coordinator_folder
from federation.supervision import STOP_SECONDS

from .deploy_files import DEPLOY, FAULTS, parses, read_compose

FILES = sorted(path.name for path in DEPLOY.glob("compose*.yaml"))
WHOLE = [name for name in FILES if name != "compose.gpu.yaml"]  # that one only adds to another
SERVICES = [(name, service) for name in WHOLE for service in read_compose(name)["services"]]
KEYS = {
    *("image", "build", "command", "entrypoint", "user", "read_only", "tmpfs", "volumes", "networks"),
    *(
        "network_mode",
        "ports",
        "cap_drop",
        "security_opt",
        "restart",
        "stop_grace_period",
        "ulimits",
        "deploy",
    ),
    *("logging", "depends_on", "environment", "group_add"),
}


def service_of(name: str, service: str) -> dict[str, Any]:
    found: dict[str, Any] = read_compose(name)["services"][service]
    return found


def test_the_files_are_the_ones_meant() -> None:
    assert FILES == ["compose.coordinator.yaml", "compose.gpu.yaml", "compose.hospital.yaml", "compose.yaml"]
    assert set(read_compose("compose.yaml")["services"]) == {"coordinator", "site-1", "site-2", "site-3"}
    assert set(read_compose("compose.hospital.yaml")["services"]) == {"worker", "relay"}


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_each_service_is_locked_down(name: str, service: str) -> None:
    found = service_of(name, service)
    assert set(found) <= KEYS, set(found) - KEYS
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["restart"] == "unless-stopped"
    assert found["ulimits"] == {"core": 0}
    user, group = found["user"].split(":")
    assert int(user) > 1000
    assert int(group) > 1000
    [tmp] = found["tmpfs"]
    assert tmp.split(":")[0] == "/tmp"
    assert {"noexec", "nosuid", "nodev"} <= set(tmp.split(":")[1].split(","))
    limits = found["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}
    assert re.fullmatch(r"\d+g", limits["memory"])


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_there_is_time_for_an_orderly_end(name: str, service: str) -> None:
    """A coordinator stops three processes one after the other, a site two."""
    seconds = int(service_of(name, service)["stop_grace_period"].removesuffix("s"))
    assert seconds > (3 if service == "coordinator" else 2) * STOP_SECONDS


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_folders_are_mounted_whole_must_exist_and_images_are_read_only(name: str, service: str) -> None:
    for mount in service_of(name, service)["volumes"]:
        assert mount["type"] == "bind"
        assert mount["bind"] == {"create_host_path": False}  # Docker would make it as root's
        assert mount["target"] in {"/study", "/node", "/relay", "/data", "/run/instahide"}
        assert mount.get("read_only", False) == (mount["target"] == "/data")


@pytest.mark.parametrize("name", FILES)
def test_no_secret_is_in_a_file_or_an_environment(name: str) -> None:
    for service in read_compose(name)["services"].values():
        for key, value in service.get("environment", {}).items():
            assert key == "FLWR_HOME" or value == "", key
    assert "secrets:" not in (DEPLOY / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_but_the_gateway_is_published(name: str) -> None:
    ports = {
        service: found["ports"]
        for service, found in read_compose(name)["services"].items()
        if "ports" in found
    }
    expected = {"coordinator": ["0.0.0.0:9443:9443"]} if name == "compose.coordinator.yaml" else {}
    assert ports == expected


def test_each_site_shares_a_network_with_the_coordinator_and_with_no_other_site() -> None:
    table = read_compose("compose.yaml")
    networks = {service: set(found["networks"]) for service, found in table["services"].items()}
    sites = [service for service in networks if service != "coordinator"]
    assert networks["coordinator"] == set(table["networks"])
    for site in sites:
        assert len(networks[site]) == 1
        assert not any(networks[site] & networks[other] for other in sites if other != site)
    assert all(network == {"internal": True} for network in table["networks"].values())


def test_the_hospitals_worker_has_no_network_and_its_relay_no_images() -> None:
    worker, relay = (service_of("compose.hospital.yaml", service) for service in ("worker", "relay"))
    assert worker["network_mode"] == "none"
    assert "networks" not in worker
    assert {mount["target"] for mount in relay["volumes"]} == {"/relay", "/run/instahide"}
    [socket] = [mount["source"] for mount in relay["volumes"] if mount["target"] == "/run/instahide"]
    [node] = [mount["source"] for mount in worker["volumes"] if mount["target"] == "/node"]
    assert socket == f"{node}/state/relay"
    assert worker["user"] != relay["user"]
    assert worker["group_add"] == relay["group_add"]


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_its_command_exists(name: str, service: str) -> None:
    found = service_of(name, service)
    if "entrypoint" in found:  # then `run` takes a whole command, as the head of the file has it
        assert found["entrypoint"] == ["tini", "--"]
        assert found["command"][:2] == ["python", "-m"]
        assert find_spec(found["command"][2]) is not None
    else:
        parses(found["command"])


@pytest.mark.parametrize("name", FILES)
def test_commands_in_the_comments_exist(name: str) -> None:
    text = (DEPLOY / name).read_text(encoding="utf-8")
    services = read_compose(name)["services"]
    for verb, service, program, words in re.findall(
        r"(run --rm|exec) (\w+) (instahide )?((?:coordinator|node) .+)$", text, re.MULTILINE
    ):
        # `exec` and an entry point of the file's own take a program; the image's entry point is one.
        assert bool(program) == (verb == "exec" or "entrypoint" in services[service])
        parses(words.split())
    for script in re.findall(r"deploy/[\w-]+\.sh", text):
        assert (DEPLOY.parent / script).exists()


@pytest.mark.parametrize("name", FILES)
def test_a_parser_of_the_compose_specification_takes_it_and_no_unknown_key(name: str) -> None:
    compose_spec = pytest.importorskip("compose_spec", reason=f"compose-spec: {FAULTS}")
    table = read_compose(name)
    parsed = compose_spec.PyCompose.from_yaml(yaml.safe_dump(table))
    parsed.validate()
    assert sorted(parsed.service_names()) == sorted(table["services"])
    wrong = yaml.safe_dump(table).replace("image:", "imagee:", 1)
    with pytest.raises(ValueError, match="imagee"):
        compose_spec.PyCompose.from_yaml(wrong)


def test_the_study_folder_holds_every_key_as_a_file_only_its_owner_reads(tmp_path: Any) -> None:
    """What the mount brings into the container: keys are files, mode 0600."""
    folder = create_coordinator_folder(tmp_path / "study", names=["coordinator"])
    keys = [folder.authority.key, folder.superlink.key, folder.gateway.key, folder.secret]
    assert [oct(path.stat().st_mode & 0o777) for path in keys] == ["0o600"] * 4
