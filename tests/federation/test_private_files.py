"""Secrets on disk: made once, private, and never read through a link or past a loose permission."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from federation.identity import create_identity, load_identity, load_or_create_identity
from federation.private_files import read_private_file, write_private_file
from federation.provisioning import create_authority, create_node_key, issue_server_certificate, load_node_key
from instahide.errors import InvalidInputError, RefusedError


def read(path: Path) -> bytes:
    return read_private_file(path, what="the key", restore="make it again")


def test_a_secret_is_written_with_mode_0600_and_read_back(tmp_path: Path) -> None:
    write_private_file(tmp_path / "new" / "secret", b"entropy")
    assert stat.S_IMODE((tmp_path / "new" / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert read(tmp_path / "new" / "secret") == b"entropy"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["secret"]


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder"])
def test_nothing_that_is_there_is_overwritten_or_written_through(tmp_path: Path, kind: str) -> None:
    target, path = tmp_path / "target", tmp_path / "secret"
    if kind == "file":
        path.write_bytes(b"old")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)
        if kind == "link":
            target.write_bytes(b"old")
    with pytest.raises(RefusedError, match="already exists and holds a secret"):
        write_private_file(path, b"new")
    if kind == "dangling link":
        assert not target.exists()
    else:
        assert not target.exists() or target.read_bytes() == b"old"
    assert not list(tmp_path.glob(".*.partial"))


def test_a_file_system_without_hard_links_is_as_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write_private_file(tmp_path / "secret", b"entropy")
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("secret", "link"):
        with pytest.raises(RefusedError):
            write_private_file(tmp_path / name, b"other")
    assert read(tmp_path / "secret") == b"entropy"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_secret_that_others_may_touch_is_not_used(tmp_path: Path, mode: int) -> None:
    write_private_file(tmp_path / "secret", b"entropy")
    (tmp_path / "secret").chmod(mode)
    with pytest.raises(RefusedError, match="others than its owner") as refusal:
        read(tmp_path / "secret")
    assert refusal.value.hint == f"chmod 600 {tmp_path / 'secret'}"


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    write_private_file(tmp_path / "secret", b"entropy")
    (tmp_path / "link").symlink_to("secret")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe", 0o600)  # opening one for reading would wait for ever
    for name, words in (
        ("link", "symbolic link"),
        ("folder", "no regular file"),
        ("pipe", "no regular file"),
    ):
        with pytest.raises(RefusedError, match=words):
            read(tmp_path / name)
    with pytest.raises(InvalidInputError, match=r"the key .*nothing is missing") as missing:
        read(tmp_path / "nothing")
    assert missing.value.hint == "make it again"


def test_no_private_key_is_used_through_a_link(tmp_path: Path) -> None:
    node = create_node_key(tmp_path / "real").private
    identity = tmp_path / "real" / "identity.key"
    create_identity(identity)
    authority = create_authority(tmp_path / "real")
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in (node, identity, authority.key):
        (linked / path.name).symlink_to(path)
    (linked / "authority.crt").write_bytes(authority.certificate.read_bytes())
    with pytest.raises(RefusedError, match="symbolic link"):
        load_node_key(linked / "node.key")
    for load in (load_identity, load_or_create_identity):
        with pytest.raises(RefusedError, match="symbolic link"):
            load(linked / "identity.key")
    by_link = type(authority)(linked / "authority.crt", linked / "authority.key")
    with pytest.raises(RefusedError, match="symbolic link"):
        issue_server_certificate(by_link, linked, names=["fl.example.org"])
    assert load_node_key(node).curve.name == "secp384r1"
