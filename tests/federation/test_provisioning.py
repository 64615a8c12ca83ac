"""Keys and certificates: who trusts what, file modes, and what is refused."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from federation.provisioning import (
    CertificateFiles,
    certificate_expiry,
    certificate_fingerprint,
    create_authority,
    create_node_key,
    create_secret,
    issue_server_certificate,
    load_public_key,
    public_key_fingerprint,
)
from instahide.errors import IntegrityError, InvalidInputError, RefusedError


def handshake(server: CertificateFiles, authority: Path, host_name: str) -> None:
    """A TLS handshake over a socket pair: raises what a real client would."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, contextlib.suppress(ssl.SSLError, OSError):
            context.wrap_socket(theirs, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours:
            ssl.create_default_context(cafile=str(authority)).wrap_socket(
                ours, server_hostname=host_name
            ).close()
    finally:
        thread.join()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "fl.example.org"])
def test_a_certificate_of_the_authority_is_accepted_for_its_names(tmp_path: Path, name: str) -> None:
    authority = create_authority(tmp_path)
    server = issue_server_certificate(authority, tmp_path, names=["localhost", "127.0.0.1", "fl.example.org"])
    handshake(server, authority.certificate, name)


def test_another_name_another_authority_and_an_expired_certificate_are_refused(tmp_path: Path) -> None:
    authority = create_authority(tmp_path)
    server = issue_server_certificate(authority, tmp_path, names=["localhost"])
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, authority.certificate, "example.org")
    other = create_authority(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"signature failure|unable to get|self-signed"):
        handshake(server, other.certificate, "localhost")
    yesterday = datetime.now(UTC) - timedelta(days=1)
    old = issue_server_certificate(
        authority, tmp_path, names=["localhost"], starting=yesterday, days=0.5, file_name="old"
    )
    assert certificate_expiry(old.certificate) < datetime.now(UTC)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(old, authority.certificate, "localhost")


def test_a_server_certificate_cannot_sign_and_does_not_outlive_the_authority(tmp_path: Path) -> None:
    authority = create_authority(tmp_path, days=10)
    server = issue_server_certificate(authority, tmp_path, names=["localhost"], days=1000)
    certificate = x509.load_pem_x509_certificate(server.certificate.read_bytes())
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert certificate_expiry(server.certificate) == certificate_expiry(authority.certificate)


def test_every_private_file_is_mode_0600_and_never_overwritten(tmp_path: Path) -> None:
    authority = create_authority(tmp_path)
    server = issue_server_certificate(authority, tmp_path, names=["localhost"])
    node = create_node_key(tmp_path)
    secret = create_secret(tmp_path / "secret")
    for path in (authority.key, server.key, node.private, secret):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    kept = authority.key.read_bytes(), node.private.read_bytes(), secret.read_bytes()
    assert len(secret.read_bytes()) == 32
    for again in (
        lambda: create_authority(tmp_path),
        lambda: create_node_key(tmp_path),
        lambda: create_secret(secret),
    ):
        with pytest.raises(RefusedError, match="already exists"):
            again()
    assert kept == (authority.key.read_bytes(), node.private.read_bytes(), secret.read_bytes())


def test_a_node_key_is_p384_in_the_openssh_format(tmp_path: Path) -> None:
    node = create_node_key(tmp_path)
    key = serialization.load_ssh_private_key(node.private.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    assert load_public_key(node.public) == key.public_key()
    assert (
        node.fingerprint
        == public_key_fingerprint(node.public)
        == public_key_fingerprint(node.public.read_bytes())
    )


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_the_fingerprint_is_the_one_openssh_prints(tmp_path: Path) -> None:
    node = create_node_key(tmp_path)
    done = subprocess.run(["ssh-keygen", "-l", "-f", node.public], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == node.fingerprint


def test_keys_that_flower_would_refuse_are_refused_here(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pub"
    wrong.write_bytes(
        rsa.generate_private_key(public_exponent=65537, key_size=2048)
        .public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    with pytest.raises(InvalidInputError, match="not an elliptic-curve key"):
        load_public_key(wrong)
    with pytest.raises(InvalidInputError, match="no public key"):
        load_public_key(b"hello")


@pytest.mark.parametrize("names", [[], "localhost", ["https://x"], ["a b"], ["*.x.org"], ["1.2.3"], [""]])
def test_malformed_server_names_are_refused(tmp_path: Path, names: list[str]) -> None:
    authority = create_authority(tmp_path)
    with pytest.raises(InvalidInputError):
        issue_server_certificate(authority, tmp_path, names=names)
    assert not (tmp_path / "server.key").exists()


def test_an_authority_whose_halves_do_not_belong_together_is_refused(tmp_path: Path) -> None:
    one, two = create_authority(tmp_path / "one"), create_authority(tmp_path / "two")
    mixed = CertificateFiles(one.certificate, two.key)
    with pytest.raises(IntegrityError, match="is not the key of"):
        issue_server_certificate(mixed, tmp_path, names=["localhost"])
    one.certificate.write_text("not a certificate")
    with pytest.raises(IntegrityError, match="not a PEM certificate"):
        issue_server_certificate(one, tmp_path, names=["localhost"])


def test_a_certificate_has_the_same_fingerprint_as_file_and_as_the_peer_shows_it(tmp_path: Path) -> None:
    authority = create_authority(tmp_path)
    der = x509.load_pem_x509_certificate(authority.certificate.read_bytes()).public_bytes(
        serialization.Encoding.DER
    )
    assert certificate_fingerprint(authority.certificate) == certificate_fingerprint(der)
