"""Thirty days before a certificate ends, whoever starts, runs or joins is told, with what to do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from federation.cli import run
from federation.commands import coordinator
from federation.expiry import gateway_warnings, node_warnings, study_warnings
from federation.flower_processes.node import NodeSettings
from federation.flower_processes.superlink import CoordinatorFolder
from federation.node_folder import NodeFolder
from federation.provisioning import create_authority, issue_server_certificate
from federation.renewal import renew_authority, renew_certificates
from federation.study import Study, create_study

from .doctor.gateways import HOST, Behaviour, gateway


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return create_study(tmp_path / "study", names=("localhost",), listen="127.0.0.1", port=9443)


def test_a_new_study_has_nothing_to_say(study: Study) -> None:
    assert study_warnings(study) == []


@pytest.mark.parametrize(("days", "warned"), [(31.5, 0), (29.5, 2), (0.5, 2)])
def test_server_certificates_are_named_from_thirty_days_on_with_the_verb_that_helps(
    study: Study, days: float, warned: int
) -> None:
    renew_certificates(study, days=days)
    lines = study_warnings(study)
    assert len(lines) == warned
    for line, name in zip(lines, ("gateway's certificate", "SuperLink's certificate"), strict=False):
        assert line.startswith(f"warning: the {name} ends on ")
        assert f"in {int(days)} days" in line
        assert "`instahide coordinator renew STUDY`" in line


def short_authority(folder: Path, days: float) -> None:
    for name in ("authority.crt", "authority.key"):
        (folder / name).unlink(missing_ok=True)
    create_authority(folder, days=days)


def test_an_authority_that_ends_needs_new_join_files(study: Study) -> None:
    short_authority(study.path, 10)
    renew_certificates(study)
    lines = study_warnings(study)
    assert len(lines) == 3  # no certificate outlives its authority
    assert "renew STUDY --authority" in lines[2]
    renew_authority(study)
    assert study_warnings(study) == []


def test_one_that_has_ended_is_said_to_have(study: Study) -> None:
    for name in ("gateway.crt", "gateway.key"):
        (study.path / name).unlink()
    starting = datetime.now(UTC) - timedelta(days=3)
    issue_server_certificate(
        CoordinatorFolder(study.path).authority,
        study.path,
        names=["localhost"],
        starting=starting,
        days=2,
        file_name="gateway",
    )
    [line] = study_warnings(study)
    assert line.startswith("warning: the gateway's certificate ended on ")


def test_a_run_says_it_before_it_starts(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):  # noqa: N818
        pass

    def submit(*_: object) -> None:
        raise Stopped

    renew_certificates(study, days=5)
    control = type("Control", (), {"submit_run": submit})()
    config = type("Config", (), {"run_directory": str(tmp_path), "resume": False, "run_name": "t"})()
    monkeypatch.setattr("federation.plan.Plan.of", lambda *_, **__: type("P", (), {"short": "1"})())
    monkeypatch.setattr("federation.study.record_submission", lambda *_: None)
    monkeypatch.setattr(
        "federation.flower_processes.bundle.build_bundle", lambda: type("B", (), {"sha256": ""})
    )
    config.to_run_config = dict
    with pytest.raises(Stopped):
        coordinator._submit_and_follow(control, study, config, coordinator.OutputFormat.json)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("warning: the ") == 2


# --- at the hospital --------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path) -> NodeFolder:
    (tmp_path / "node").mkdir()
    return NodeFolder(tmp_path / "node")


def test_a_node_that_has_not_joined_trusts_nobody_and_says_nothing(node: NodeFolder) -> None:
    assert node_warnings(node) == []
    assert gateway_warnings(node) == []


def test_a_node_is_told_that_its_authority_ends(node: NodeFolder) -> None:
    short_authority(node.path, 400)
    assert node_warnings(node) == []
    short_authority(node.path, 20)
    [line] = node_warnings(node)
    assert line.startswith("warning: the certificate of the coordinator's authority ends on ")
    assert "node join" in line


@pytest.mark.parametrize(("days", "warned"), [(100, 0), (12, 1)])
def test_a_node_is_told_what_the_gateway_shows(
    node: NodeFolder, tmp_path: Path, days: float, warned: int
) -> None:
    authority = create_authority(tmp_path)
    files = issue_server_certificate(authority, tmp_path, names=[HOST], days=days)
    with gateway(files, authority.certificate, Behaviour()) as address:
        settings = NodeSettings(
            name="n",
            coordinator=str(address),
            authority=authority.certificate,
            private_key=node.key,
            state_folder=node.state,
        )
        node.node_config.write_text(settings.to_toml())
        lines = gateway_warnings(node)
    assert len(lines) == warned
    for line in lines:
        assert "ask the coordinator to renew" in line
    assert gateway_warnings(node) == []  # it is gone: not an expiry


Write = Callable[[Path], object]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("nothing")])
def test_what_cannot_be_read_is_left_to_the_doctor(study: Study, node: NodeFolder, damage: Write) -> None:
    damage(study.path / "superlink.crt")
    node.authority.write_text("nothing")
    assert study_warnings(study) == []
    assert node_warnings(node) == []


def test_the_authority_is_renewed_by_the_verb_and_every_file_is_named(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["coordinator", "renew", str(study.path), "--authority"]) == 0
    assert "the authority is another one" in capsys.readouterr().out
    words = ["--certificate-file", "a", "--key-file", "b", "--ca-file", "c"]
    assert run(["coordinator", "renew", str(study.path), "--authority", *words]) == 2
    assert "error: " in capsys.readouterr().err
