"""Keys and certificates on the disk: each way in which one can be wrong is named, with its mending."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from federation.doctor.checks import Outcome, State
from federation.doctor.files import (
    is_identity_key,
    is_key_of_certificate,
    is_node_key_of,
    issued_certificate,
    private_file,
    private_folder,
    read_certificate,
    validity,
)
from federation.identity import create_identity
from federation.provisioning import create_authority, create_node_key, issue_server_certificate
from instahide.errors import InvalidInputError


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return create_node_key(tmp_path).private


def look(path: Path) -> Outcome:
    return private_file(path, restore="restore it", is_good=is_node_key_of(path.with_suffix(".pub")))


def test_a_key_as_it_was_made_is_in_order(key: Path) -> None:
    assert look(key).state is State.ok


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o602, 0o777])
def test_a_key_that_others_may_reach_fails_and_chmod_mends_it(key: Path, mode: int) -> None:
    key.chmod(mode)
    outcome = look(key)
    assert outcome.state is State.failed
    assert f"{mode:04o}" in outcome.seen
    assert outcome.fix == f"chmod 600 {key}"
    key.chmod(0o600)
    assert look(key).state is State.ok


def test_a_link_to_a_good_key_fails(key: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    key.rename(elsewhere)
    key.symlink_to(elsewhere)
    outcome = look(key)
    assert outcome.state is State.failed
    assert "symbolic link" in outcome.seen


def test_a_key_that_is_missing_or_a_folder_or_a_pipe_fails(key: Path) -> None:
    key.unlink()
    assert look(key) == Outcome(State.failed, f"{key} is missing", "restore it")
    key.mkdir()
    assert "no regular file" in look(key).seen
    key.rmdir()
    os.mkfifo(key, 0o600)  # reading it would hang
    assert "no regular file" in look(key).seen


def test_another_users_key_fails(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: key.stat().st_uid + 1)
    assert "belongs to user" in look(key).seen


def test_a_key_that_is_not_the_one_it_should_be_fails_and_nothing_of_it_is_shown(
    key: Path, tmp_path: Path
) -> None:
    other = create_node_key(tmp_path / "other").private.read_bytes()
    for content in (other, b"", b"-----BEGIN OPENSSH PRIVATE KEY-----\nSECRET\n", b"SECRET"):
        key.write_bytes(content)
        outcome = look(key)
        assert outcome == Outcome(State.failed, f"{key} is not the key it should be", "restore it")


def test_an_identity_key_is_an_ed25519_key(key: Path, tmp_path: Path) -> None:
    create_identity(tmp_path / "identity.key")
    assert is_identity_key((tmp_path / "identity.key").read_bytes())
    assert not is_identity_key(key.read_bytes())
    assert not is_identity_key(b"nothing")


def test_a_certificate_and_its_key_belong_together(tmp_path: Path) -> None:
    authority = create_authority(tmp_path)
    one = issue_server_certificate(authority, tmp_path, names=["localhost"])
    assert is_key_of_certificate(one.certificate)(one.key.read_bytes())
    assert not is_key_of_certificate(one.certificate)(authority.key.read_bytes())


@pytest.mark.parametrize(
    ("days_later", "state", "words"),
    [
        (-1.0, State.failed, "not valid before"),
        (1.0, State.ok, "in 99 days"),
        (69.9, State.ok, "in 30 days"),
        (70.1, State.warning, "in 29 days"),
        (99.5, State.warning, "in 0 days"),
        (100.1, State.failed, "ended on"),
    ],
)
def test_a_certificate_is_warned_of_thirty_days_before_its_end(
    tmp_path: Path, days_later: float, state: State, words: str
) -> None:
    certificate = read_certificate(create_authority(tmp_path, days=100).certificate)
    moment = certificate.not_valid_after_utc + timedelta(days=days_later - 100)
    outcome = validity(certificate, renew="renew it", now=moment)
    assert outcome.state is state
    assert words in outcome.seen
    assert ("renew it" in outcome.fix) == (state is not State.ok)


def test_a_server_certificate_is_signed_by_the_authority_for_all_names_and_in_time(tmp_path: Path) -> None:
    authority, other = create_authority(tmp_path / "a"), create_authority(tmp_path / "b")
    made = issue_server_certificate(authority, tmp_path, names=["FL.example.org", "10.0.0.5", "::1"])

    def state(names: tuple[str, ...], signer: Path = authority.certificate) -> Outcome:
        return issued_certificate(made.certificate, signer, names=names, renew="renew it")

    assert state(("fl.example.org", "10.0.0.5", "::1")).state is State.ok
    missing = state(("fl.example.org", "fl.example.com"))
    assert missing.state is State.failed
    assert "not for fl.example.com" in missing.seen
    assert "is not signed by" in state(("fl.example.org",), other.certificate).seen
    start = datetime.now(UTC) - timedelta(days=20)
    old = issue_server_certificate(
        authority, tmp_path, names=["localhost"], starting=start, days=10, file_name="old"
    )
    ended = issued_certificate(old.certificate, authority.certificate, names=("localhost",), renew="renew it")
    assert ended.state is State.failed


def test_what_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.crt").write_text("nothing")
    for name in ("a.crt", "b.crt"):
        with pytest.raises(InvalidInputError, match=name):
            read_certificate(tmp_path / name)


def test_a_private_folder(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert private_folder(folder).fix == f"mkdir -m 700 {folder}"
    folder.mkdir(mode=0o700)
    assert private_folder(folder).state is State.ok
    folder.chmod(0o755)
    assert private_folder(folder) == Outcome(
        State.warning, f"{folder} has mode 0755: other users may look into it", f"chmod 700 {folder}"
    )
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert private_folder(link).state is State.failed


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_one_may_not_write_in_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    outcome = private_folder(tmp_path)
    tmp_path.chmod(0o700)
    assert outcome.state is State.failed
