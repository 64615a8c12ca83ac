"""New server certificates, and a new authority: nothing is lost or left half done, no key is typed in."""

from __future__ import annotations

from pathlib import Path

import pytest

from federation.audit_verification import read_log
from federation.doctor.checks import State
from federation.doctor.coordinator import coordinator_checks
from federation.doctor.files import names_of, read_certificate
from federation.joining import read_answer
from federation.node_folder import NodeFolder, join
from federation.provisioning import certificate_fingerprint, create_node_key
from federation.renewal import renew_authority, renew_certificates, write_join_files
from federation.study import Study, admit, coordinator_number, create_study, load_study
from instahide.errors import InvalidInputError, RefusedError

from .test_study import request_of


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return create_study(tmp_path / "study", names=("localhost",), listen="127.0.0.1", port=9443)


def contents(study: Study) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in study.path.iterdir() if path.is_file()}


def test_certificates_and_keys_are_new_the_authority_and_the_rest_stay(study: Study) -> None:
    before = contents(study)
    gateway, superlink = renew_certificates(study, days=700)
    after = contents(study)
    replaced = {"gateway.crt", "gateway.key", "superlink.crt", "superlink.key"}
    assert {name for name in before if after[name] != before[name]} == replaced
    kept = {name: data for name, data in after.items() if ".until-" in name}
    assert sorted(kept.values()) == sorted(before[name] for name in replaced)
    assert set(after) == set(before) | set(kept)
    for name in after:
        if name.endswith(".key"):
            assert (study.path / name).stat().st_mode & 0o777 == 0o600
    for files in (gateway, superlink):
        lasts = read_certificate(files.certificate)
        assert (lasts.not_valid_after_utc - lasts.not_valid_before_utc).days == 700


def test_a_name_added_to_the_study_is_in_the_new_certificate(study: Study) -> None:
    settings = study.path / "study.toml"
    settings.write_text(settings.read_text().replace('["localhost"]', '["localhost", "127.0.0.1"]'))
    changed = load_study(study.path)
    checks = {check.name: check for check in coordinator_checks(changed)}
    outcome = checks["gateway certificate"].look()
    assert outcome.state is State.failed
    assert "coordinator renew" in outcome.fix
    gateway, _ = renew_certificates(changed)
    assert names_of(read_certificate(gateway.certificate)) == ("localhost", "127.0.0.1")
    for name in ("gateway certificate", "gateway key", "SuperLink certificate", "SuperLink key"):
        assert checks[name].look().state is State.ok


def test_a_key_lost_together_with_its_certificate_is_made_anew(study: Study) -> None:
    for name in ("gateway.key", "gateway.crt"):
        (study.path / name).unlink()
    gateway, _ = renew_certificates(study)
    assert certificate_fingerprint(gateway.certificate)


def test_without_the_authoritys_key_nothing_changes(study: Study) -> None:
    (study.path / "authority.key").unlink()
    before = contents(study)
    with pytest.raises(InvalidInputError, match=r"authority\.key is missing"):
        renew_certificates(study)
    assert contents(study) == before


def test_an_error_half_way_leaves_nothing(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from federation import renewal

    real = renewal.issue_server_certificate
    calls: list[str] = []

    def second_fails(*arguments: object, file_name: str, **rest: object) -> object:
        calls.append(file_name)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(*arguments, file_name=file_name, **rest)  # type: ignore[arg-type]

    before = contents(study)
    monkeypatch.setattr(renewal, "issue_server_certificate", second_fails)
    with pytest.raises(OSError, match="No space"):
        renew_certificates(study)
    assert contents(study) == before


# --- a new authority --------------------------------------------------------------------------------


@pytest.fixture
def node(study: Study, tmp_path: Path) -> NodeFolder:
    """A hospital's folder with keys only, that has joined the study."""
    folder = NodeFolder(tmp_path / "st-mary")
    create_node_key(folder.path)
    request = request_of("st-mary", tmp_path)
    join(folder, admit(study, request, 11))
    return folder


def test_a_new_authority_signs_new_server_certificates_and_its_old_key_is_gone(study: Study) -> None:
    before = contents(study)
    renew_authority(study)
    after = contents(study)
    checks = {check.name: check.look for check in coordinator_checks(study)}
    for name in ("authority", "gateway", "SuperLink"):
        for what in ("certificate", "key"):
            check = f"{name} {what}" if f"{name} {what}" in checks else name
            assert checks[check]().state is State.ok, check
    assert before["authority.key"] not in after.values()
    assert before["authority.crt"] in after.values()
    assert [path.name for path in study.path.iterdir() if path.is_dir()] == []
    record = read_log(study.path / "audit.jsonl").records[-1]
    assert record.event == "authority-renewed"
    assert record.fields == {"certificate-sha256": certificate_fingerprint(study.path / "authority.crt")}


def test_every_hospital_gets_a_join_file_that_it_takes_without_a_telephone(
    study: Study, node: NodeFolder
) -> None:
    old = node.authority.read_bytes()
    renew_authority(study)
    [path] = write_join_files(study)
    assert path == study.path / "joins" / "st-mary.join.json"
    answer = read_answer(path)
    join(node, answer)
    assert node.authority.read_bytes() == (study.path / "authority.crt").read_bytes() != old
    assert answer.safety_number == coordinator_number(study)


def test_the_join_file_of_the_old_authority_is_refused_from_then_on(
    study: Study, node: NodeFolder, tmp_path: Path
) -> None:
    stolen = admit(study, request_of("st-mary", tmp_path), 11)
    renew_authority(study)
    join(node, read_answer(write_join_files(study)[0]))
    with pytest.raises(RefusedError, match="older than the one this node has taken in"):
        join(node, stolen)


@pytest.mark.parametrize("steps", range(9))
def test_a_renewal_that_is_cut_short_is_made_whole_by_the_next(
    study: Study, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and certificates that do not belong together: until the next try, and no file is missing."""
    real, done = Path.replace, [0]

    def replace(self: Path, target: Path) -> Path:
        done[0] += 1
        if done[0] > steps:
            raise InterruptedError
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        with pytest.raises(InterruptedError):
            renew_authority(study)
    for name in ("authority", "gateway", "superlink"):
        assert (study.path / f"{name}.crt").exists()
        assert (study.path / f"{name}.key").exists()
    renew_authority(study)
    checks = {check.name: check.look for check in coordinator_checks(study)}
    for name in (
        "authority key",
        "gateway certificate",
        "gateway key",
        "SuperLink certificate",
        "SuperLink key",
    ):
        assert checks[name]().state is State.ok, name
