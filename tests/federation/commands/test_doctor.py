"""``doctor`` on both sides and ``coordinator renew``: what is shown, the exit code, and no traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.cli import run
from federation.doctor.network import Address
from federation.identity import load_or_create_identity
from federation.joining import JoinAnswer, read_request
from federation.node_folder import NodeFolder, join
from federation.provisioning import create_authority, issue_server_certificate
from federation.supervision import free_port
from instahide import __version__

from ..doctor.gateways import HOST, Behaviour, gateway

SECRETS = ("node.key", "identity.key", "authority.key", "gateway.key", "superlink.key", "superexec.secret")


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> NodeFolder:
    """A node that has not joined."""
    rng = np.random.default_rng(0)
    images = tmp_path / "scans.npz"
    np.savez(images, x=rng.integers(0, 256, (80, 8, 8), dtype=np.uint8), y=np.arange(80) % 2)
    assert run(["node", "init", str(tmp_path / "n"), "--name", "st-mary", "--data", str(images)]) == 0
    capsys.readouterr()
    return NodeFolder(tmp_path / "n")


def joined(folder: NodeFolder, coordinator: str, authority: Path) -> None:
    answer = JoinAnswer(
        name="st-mary",
        coordinator=coordinator,
        authority=authority.read_text(),
        identity_key=load_or_create_identity(authority.with_name("coordinator.identity")).public_line,
        fingerprint=read_request(folder.path / "st-mary.request.json").fingerprint,
    )
    join(folder, answer)


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Address]:
    """A gateway that knows every key."""
    authority = create_authority(tmp_path / "coordinator")
    files = issue_server_certificate(authority, tmp_path / "coordinator", names=[HOST])
    with gateway(files, authority.certificate, Behaviour(release=__version__)) as address:
        yield address


def examine(
    capsys: pytest.CaptureFixture[str], *words: str, code: int
) -> tuple[dict[str, dict[str, str]], str]:
    """Run a doctor; its rows by name, and what went to stderr."""
    assert run([*words, "--format", "json", "--wait", "60"]) == code
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    report: dict[str, Any] = json.loads(shown.out)
    assert report["ok"] == (code == 0)
    for row in report["checks"]:
        assert ("fix" in row) == (row["state"] != "ok"), row
    rows = {row["name"]: row for row in report["checks"]}
    assert len(rows) == len(report["checks"])
    return rows, shown.err


def states(rows: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: row["state"] for name, row in rows.items()}


def assert_no_secret(folder: Path, text: str) -> None:
    for path in (folder / name for name in SECRETS):
        if path.is_file():
            for line in path.read_bytes().decode("latin-1").splitlines():
                assert len(line) < 12 or line not in text, path.name


def test_a_node_in_order_fails_nothing(
    folder: NodeFolder, coordinator: Address, capsys: pytest.CaptureFixture[str]
) -> None:
    joined(folder, str(coordinator), coordinator.authority)
    rows, errors = examine(capsys, "node", "doctor", str(folder.path), code=0)
    assert errors == ""
    found = states(rows)
    for name in ("memory", "time service", "GPU", "disk"):  # the machine's, whatever it is
        found.pop(name)
    assert found.pop("site worker") == "skipped"
    assert set(found.values()) == {"ok"}
    assert rows["dataset"]["seen"].endswith("test and 0 public images, 2 classes")
    assert {"coordinator's name", "TLS chain", "TLS host name", "clock", "key registered"} < set(found)


def test_the_text_shows_every_check_and_its_fix_and_no_secret(
    folder: NodeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.key.chmod(0o644)
    assert run(["node", "doctor", str(folder.path), "--wait", "60"]) == 5
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert f"fix: chmod 600 {folder.key}" in shown.out
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith(("failed", "warning", "skipped")):
            assert following.lstrip().startswith("fix: ")
    assert shown.err.splitlines() == [
        "error: 2 of 22 checks failed: node key, joined",
        "hint: the fix lines above say what to do",
    ]
    assert_no_secret(folder.path, shown.out + shown.err)


def test_a_node_that_has_not_joined_is_told_so_and_checked_all_the_same(
    folder: NodeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, errors = examine(capsys, "node", "doctor", str(folder.path), code=5)
    assert [name for name, state in states(rows).items() if state == "failed"] == ["joined"]
    assert "node join" in rows["joined"]["fix"]
    assert rows["TLS chain"]["state"] == "skipped"
    assert "1 of 22 checks failed: joined" in errors


def test_a_coordinator_that_is_down_is_one_failure(
    folder: NodeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = create_authority(tmp_path / "coordinator").certificate
    joined(folder, f"{HOST}:{free_port()}", authority)
    rows, _ = examine(capsys, "node", "doctor", str(folder.path), "--no-data", code=5)
    assert [name for name, state in states(rows).items() if state == "failed"] == ["coordinator's port"]
    assert "dataset" not in rows


def test_damaged_files_are_outcomes_one_by_one(
    folder: NodeFolder, coordinator: Address, capsys: pytest.CaptureFixture[str]
) -> None:
    joined(folder, str(coordinator), coordinator.authority)
    damaged = {
        folder.key: "node key",
        folder.public_key: "node key",
        folder.identity_key: "identity key",
        folder.policy: "policy",
        folder.worker_config: "dataset",
        folder.node_config: "joined",
        folder.authority: "authority",
    }
    for path, check in damaged.items():
        whole = path.read_bytes()
        path.write_bytes(b"\xff damaged = [")
        rows, _ = examine(capsys, "node", "doctor", str(folder.path), code=5)
        assert rows[check]["state"] == "failed", path.name
        path.unlink()
        rows, _ = examine(capsys, "node", "doctor", str(folder.path), code=5)
        missing = "joined" if check == "authority" else check
        assert rows[missing]["state"] == "failed", path.name
        path.write_bytes(whole)
        path.chmod(0o600)
    examine(capsys, "node", "doctor", str(folder.path), code=0)


def test_images_that_are_not_the_registered_ones_fail(
    folder: NodeFolder, coordinator: Address, capsys: pytest.CaptureFixture[str]
) -> None:
    joined(folder, str(coordinator), coordinator.authority)
    folder.state.mkdir(mode=0o700)
    card = {"format-version": 1, "num-training-images": 1, "num-test-images": 2, "num-public-images": 3}
    (folder.state / "dataset.json").write_text(json.dumps(card))
    rows, _ = examine(capsys, "node", "doctor", str(folder.path), code=5)
    assert rows["dataset"]["seen"].endswith("registered were 1, 2, 3")
    assert "--accept-changed-data" in rows["dataset"]["fix"]


def test_a_folder_of_nothing_is_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, words in (("node", "holds no node"), ("coordinator", "is not a study folder")):
        assert run([side, "doctor", str(tmp_path)]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert words in shown.err


@pytest.fixture
def study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "study"
    words = ["--host", "localhost", "--listen", HOST, "--port", str(free_port())]
    assert run(["coordinator", "init", str(path), *words]) == 0
    capsys.readouterr()
    return path


def test_a_new_study_fails_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, errors = examine(capsys, "coordinator", "doctor", str(study), code=0)
    assert errors == ""
    found = states(rows)
    for name in ("memory", "time service", "disk"):
        found.pop(name)
    assert {name for name, state in found.items() if state != "ok"} == {
        "roster",  # nobody is admitted yet
        "SuperLink",  # not started
        "gateway's answer",
    }


def test_what_is_wrong_with_a_study_is_named_and_no_secret_shown(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (study / "superexec.secret").chmod(0o644)
    (study / "gateway.key").rename(study / "moved.key")
    (study / "gateway.key").symlink_to(study / "moved.key")
    (study / "sites.json").write_text("{")
    (study / "identity.key").write_text("nothing")
    (study / "identity.key").chmod(0o600)
    rows, errors = examine(capsys, "coordinator", "doctor", str(study), code=5)
    failures = [name for name, state in states(rows).items() if state == "failed"]
    assert failures == ["gateway key", "SuperExec secret", "identity key", "roster"]
    assert run(["coordinator", "doctor", str(study)]) == 5
    assert_no_secret(study, capsys.readouterr().out + errors)


def test_renew_makes_a_certificate_that_passes(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = study / "study.toml"
    settings.write_text(settings.read_text().replace('["localhost"]', '["localhost", "127.0.0.1"]'))
    rows, _ = examine(capsys, "coordinator", "doctor", str(study), code=5)
    assert "`instahide coordinator renew STUDY`" in rows["gateway certificate"]["fix"]
    assert run(["coordinator", "renew", str(study), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == ["localhost", "127.0.0.1"]
    examine(capsys, "coordinator", "doctor", str(study), code=0)
    assert run(["coordinator", "renew", str(study)]) == 0
    assert "instahide coordinator start" in capsys.readouterr().out


def test_keys_that_wait_for_the_coordinator_are_told_of(
    folder: NodeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["node", "doctor", str(folder.path), "--no-data"]
    assert "new keys" not in examine(capsys, *words, code=5)[0]
    assert run(["node", "rotate", str(folder.path), "--new-identity"]) == 0
    capsys.readouterr()
    rows, _ = examine(capsys, *words, code=5)
    assert rows["new keys"]["state"] == "warning"
    assert "2 wait for the coordinator's answer" in rows["new keys"]["seen"]
    folder.next_key.chmod(0o644)
    rows, _ = examine(capsys, *words, code=5)
    assert rows["new keys"]["state"] == "failed"
    assert f"chmod 600 {folder.next_key}" in rows["new keys"]["fix"]
