"""The Kubernetes manifests: what kustomize makes of them is valid, locked down, and starts what exists."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from .deploy_files import DEPLOY, FAULTS, parses, tool

FOLDERS = ("coordinator", "site", "site-gpu")
KINDS = {
    "coordinator": ["ConfigMap", "NetworkPolicy", "Service", "StatefulSet"],
    "site": ["NetworkPolicy", "PersistentVolumeClaim", "StatefulSet"],
    "site-gpu": ["NetworkPolicy", "PersistentVolumeClaim", "StatefulSet"],
}
VERSIONS = ("1.29", "1.32")


@cache
def built(folder: str) -> str:
    path = DEPLOY / "kubernetes" / folder
    return subprocess.run(
        [tool("kubectl"), "kustomize", path], capture_output=True, text=True, check=True
    ).stdout


def manifests(folder: str) -> dict[str, dict[str, Any]]:
    """What is applied to the cluster, by kind."""
    return {table["kind"]: table for table in yaml.safe_load_all(built(folder))}


def pod(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = manifests(folder)["StatefulSet"]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomize_makes_the_objects_meant(folder: str) -> None:
    assert sorted(manifests(folder)) == KINDS[folder]


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_and_containers_are_locked_down(folder: str) -> None:
    found = pod(folder)
    assert found["automountServiceAccountToken"] is False
    security = found["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 1000
    assert security["runAsGroup"] > 1000
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["fsGroupChangePolicy"] == "OnRootMismatch"  # keys keep mode 0600, or they are refused
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(found)
    for container in found["initContainers"] + found["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert {"cpu", "memory"} == set(container["resources"]["requests"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_one_writer_per_folder_and_images_are_read_only(folder: str) -> None:
    spec = manifests(folder)["StatefulSet"]["spec"]
    assert spec["replicas"] == 1
    [claim] = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert "hostPath" not in built(folder)
    for container in pod(folder)["containers"]:
        for mount in container["volumeMounts"]:
            assert mount.get("readOnly", False) == (mount["name"] == "images")


@pytest.mark.parametrize("folder", FOLDERS)
def test_selectors_of_policy_and_service_meet_the_pods(folder: str) -> None:
    found = manifests(folder)
    labels = found["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert len(labels) == 2
    assert found["StatefulSet"]["spec"]["selector"]["matchLabels"] == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    if "Service" in found:
        assert found["Service"]["spec"]["selector"] == labels


def test_the_coordinator_is_reached_on_the_gateways_port_and_calls_nobody() -> None:
    policy = manifests("coordinator")["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"protocol": "TCP", "port": 9443}]]
    assert policy.get("egress", []) == []
    assert [port["port"] for port in manifests("coordinator")["Service"]["spec"]["ports"]] == [9443]


def test_a_site_is_reached_by_nobody_and_calls_the_gateway_and_name_servers_only() -> None:
    policy = manifests("site")["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy.get("ingress", []) == []
    ports = {(port["protocol"], port["port"]) for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {("TCP", 9443), ("UDP", 53), ("TCP", 53)}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_secret_lies_in_the_manifests(folder: str) -> None:
    assert "Secret" not in manifests(folder)
    for container in pod(folder)["initContainers"] + pod(folder)["containers"]:
        for variable in container.get("env", []):
            assert set(variable["valueFrom"]) == {"configMapKeyRef"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_container_starts_a_command_that_exists_and_each_is_probed(folder: str) -> None:
    for container in pod(folder)["containers"]:
        parses(container["args"])
        assert {"startupProbe", "livenessProbe"} <= set(container)
        for probe in (container["startupProbe"], container["livenessProbe"]):
            if "exec" in probe:
                assert probe["exec"]["command"][0] == "instahide-health"
                assert (DEPLOY / "container" / "instahide-health").exists()
            else:
                assert probe["httpGet"] == {"scheme": "HTTPS", "path": "/health", "port": "gateway"}
    for container in pod(folder)["initContainers"]:
        [script] = container["args"]
        done = subprocess.run(["sh", "-n", "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        for words in re.findall(r"exec instahide (.+?)(?: \"\$@\")?$", script, re.MULTILINE):
            parses([*words.split(), *(["--host", "x"] if "init" in words else [])])


def test_the_study_is_made_once_with_every_name(tmp_path: Any) -> None:
    """The init container's script, with a stand-in that writes down how it was called."""
    [container] = pod("coordinator")["initContainers"]
    script = container["args"][0].replace("/var/lib/instahide", str(tmp_path))
    called = tmp_path / "called"
    (tmp_path / "instahide").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {called}\n')
    (tmp_path / "instahide").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "NAMES": "fl.example.org 10.0.0.5"}
    subprocess.run(["sh", "-euc", script], env=environment, check=True)
    words = called.read_text().split()
    assert words == [
        *("coordinator", "init", f"{tmp_path}/study"),
        *("--host", "fl.example.org", "--host", "10.0.0.5"),
    ]
    (tmp_path / "study").mkdir()
    (tmp_path / "study/study.toml").touch()
    subprocess.run(["sh", "-euc", script], env=environment, check=True)
    assert called.read_text().split() == words


def test_commands_in_the_comments_exist() -> None:
    text = (DEPLOY / "kubernetes/site/kustomization.yaml").read_text(encoding="utf-8")
    commands = re.findall(r"-- instahide (.+)$", text, re.MULTILINE)
    assert [words.split()[1] for words in commands] == ["init", "join"]
    for words in commands:
        parses(words.split())


def test_the_gpu_overlay_asks_for_one_gpu_and_the_image_with_cuda() -> None:
    [container] = pod("site-gpu")["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"] == "instahide-fl:cuda"
    assert pod("site")["containers"][0]["image"] == "instahide-fl:cpu"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_schemas_of_kubernetes_accept_every_object_and_no_unknown_field(
    folder: str, version: str
) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason=f"kubernetes-validate: {FAULTS}")
    for table in yaml.safe_load_all(built(folder)):
        validator.validate(table, version, strict=True)
    wrong = manifests(folder)["StatefulSet"]
    wrong["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(validator.ValidationError, match="imagee"):
        validator.validate(wrong, version, strict=True)
