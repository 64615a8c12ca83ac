"""Identity keys: made once, private, and their signatures good for one purpose only."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.identity import (
    Identity,
    create_identity,
    identity_fingerprint,
    load_identity,
    load_or_create_identity,
    load_public_identity,
    signature_is_good,
)
from federation.provisioning import create_node_key
from instahide.errors import IntegrityError, InvalidInputError, RefusedError


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return create_identity(tmp_path / "identity.key")


def test_a_key_is_private_is_read_back_and_never_overwritten(tmp_path: Path, identity: Identity) -> None:
    path = tmp_path / "identity.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_identity(path).public_line == identity.public_line
    assert load_or_create_identity(path).public_line == identity.public_line
    with pytest.raises(RefusedError, match="already exists"):
        create_identity(path)


def test_a_signature_is_good_for_its_message_purpose_and_key_only(identity: Identity) -> None:
    signature = identity.sign(b"head", purpose="audit log head 1")
    line = identity.public_line
    assert signature_is_good(line, signature, b"head", purpose="audit log head 1")
    assert not signature_is_good(line, signature, b"hea", purpose="audit log head 1")
    assert not signature_is_good(line, signature, b"head", purpose="roster")
    assert not signature_is_good(line, bytes(64), b"head", purpose="audit log head 1")
    stranger = Identity(Ed25519PrivateKey.generate())
    assert not signature_is_good(stranger.public_line, signature, b"head", purpose="audit log head 1")


def test_purpose_and_message_cannot_be_shifted_into_each_other(identity: Identity) -> None:
    signature = identity.sign(b"b", purpose="a")
    assert not signature_is_good(identity.public_line, signature, b"", purpose="a\x01b")
    for purpose in ("", "a\0b"):
        with pytest.raises(InvalidInputError):
            identity.sign(b"", purpose=purpose)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH")
def test_the_fingerprint_is_the_one_ssh_keygen_prints(tmp_path: Path, identity: Identity) -> None:
    (tmp_path / "identity.pub").write_text(identity.public_line + "\n")
    command = ["ssh-keygen", "-l", "-f", str(tmp_path / "identity.pub")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.split()[1] == identity.fingerprint == identity_fingerprint(identity.public_line)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, identity: Identity) -> None:
    (tmp_path / "identity.key").chmod(0o644)
    with pytest.raises(RefusedError, match="read by others"):
        load_identity(tmp_path / "identity.key")


def test_what_is_no_ed25519_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is missing"):
        load_identity(tmp_path / "none")
    node = create_node_key(tmp_path)
    with pytest.raises(IntegrityError, match="not an Ed25519 key"):
        load_identity(node.private)
    with pytest.raises(InvalidInputError, match="not Ed25519"):
        load_public_identity(node.public.read_text())
    (tmp_path / "text").write_text("no key")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(IntegrityError, match="not an OpenSSH"):
        load_identity(tmp_path / "text")
    for line in ("", "ssh-ed25519", "ssh-ed25519 AAAA", "zürich", "x" * 2000):
        with pytest.raises(InvalidInputError):
            load_public_identity(line)


def test_printing_an_identity_shows_no_secret(identity: Identity) -> None:
    secret = identity.private_key.private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )
    assert repr(identity) == f"Identity({identity.fingerprint})"
    assert secret.hex() not in repr(identity)
