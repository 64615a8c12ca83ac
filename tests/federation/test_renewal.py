"""New server certificates under the old authority: old nodes go on, nothing is lost or left half done."""

from __future__ import annotations

from pathlib import Path

import pytest

from federation.doctor.checks import State
from federation.doctor.coordinator import coordinator_checks
from federation.doctor.files import names_of, read_certificate
from federation.provisioning import certificate_fingerprint
from federation.renewal import renew_certificates
from federation.study import Study, create_study, load_study
from instahide.errors import InvalidInputError


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
