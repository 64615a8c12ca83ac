"""Keys and certificates: who may speak to whom, and how each side knows the other.

Three kinds of material, each made where it is used and stored with mode 0600:

authority   One elliptic-curve key (P-256) per federation and its self-signed certificate.
            Hospitals get the certificate only; whoever holds the key can pose as the coordinator.
server      A certificate for the coordinator's names and addresses, signed by the authority.
            The gateway shows it to the hospitals, the SuperLink shows one to its own machine.
node key    A P-384 key made inside the hospital, in OpenSSH's format, which Flower reads. Only
            the public half travels; the coordinator registers it. Both sides compare its
            fingerprint (``SHA256:...``, as ``ssh-keygen -l`` prints it) over another channel.

A private key is never overwritten: its file is created exclusively or the call is refused.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from instahide.atomic import atomic_write_bytes
from instahide.errors import IntegrityError, InvalidInputError

from .private_files import read_private_file, write_private_file

CLOCK_SKEW = timedelta(minutes=5)  # a certificate is valid a little before it is made: clocks differ
AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
SECRET_BYTES = 32


@dataclass(frozen=True)
class CertificateFiles:
    """A certificate (PEM, public) and its private key (PEM, mode 0600)."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class NodeKeyFiles:
    """A node's key pair in OpenSSH's format, and the public half's fingerprint."""

    private: Path
    public: Path
    fingerprint: str


def create_authority(
    folder: Path, *, name: str = "InstaHide FL authority", days: float = AUTHORITY_DAYS
) -> CertificateFiles:
    """Make the federation's certificate authority: ``authority.crt`` and ``authority.key``.

    Raises RefusedError if the folder already holds an authority.
    """
    files = CertificateFiles(folder / "authority.crt", folder / "authority.key")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    certificate = (
        _builder(subject, subject, key.public_key(), days=days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_private_file(files.key, _pem_of_key(key))
    atomic_write_bytes(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    return files


def issue_server_certificate(
    authority: CertificateFiles,
    folder: Path,
    *,
    names: Sequence[str],
    days: float = SERVER_DAYS,
    starting: datetime | None = None,
    file_name: str = "server",
) -> CertificateFiles:
    """Sign a certificate for the given DNS names and IP addresses: ``server.crt``, ``server.key``.

    ``starting`` (default: now) and ``days`` give the validity; the certificate never outlives
    the authority's own. Raises InvalidInputError for an empty or malformed list of names.
    """
    files = CertificateFiles(folder / f"{file_name}.crt", folder / f"{file_name}.key")
    issuer, issuer_key = _load_authority(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = x509.SubjectAlternativeName([_alternative_name(name) for name in _at_least_one(names)])
    builder = _builder(
        _name(names[0]), issuer.subject, key.public_key(), days=days, starting=starting, before=issuer
    )
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(alternatives, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
        .sign(issuer_key, hashes.SHA256())
    )
    write_private_file(files.key, _pem_of_key(key))
    atomic_write_bytes(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    return files


def create_node_key(folder: Path, *, name: str = "node") -> NodeKeyFiles:
    """Make a hospital's key pair: ``node.key`` (0600, stays there) and ``node.pub``."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    key = ec.generate_private_key(ec.SECP384R1())
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private_file(private, encoded)
    atomic_write_bytes(public, line + b"\n")
    return NodeKeyFiles(private, public, public_key_fingerprint(line))


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A node's private key, from a private file that is no link.

    Raises InvalidInputError if it is missing or no such key, RefusedError if others may read it.
    """
    data = read_private_file(path, what="the node's private key", restore="`instahide node init` makes one")
    try:
        key = serialization.load_ssh_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(
            f"{path} is not an OpenSSH private key", hint="restore it; `instahide node init` makes one"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidInputError(
            f"{path} is not an elliptic-curve key", hint="`instahide node init` makes one"
        )
    return key


def public_line_of(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half of a node's key as one OpenSSH line without a comment."""
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return line.decode("ascii")


def create_secret(path: Path) -> Path:
    """Write 32 bytes of the operating system's entropy to a new file of mode 0600."""
    write_private_file(path, secrets.token_bytes(SECRET_BYTES))
    return path


def load_public_key(source: Path | bytes) -> ec.EllipticCurvePublicKey:
    """A node's public key from a ``.pub`` file or its line; only NIST curves P-256/384/521.

    Raises InvalidInputError for anything else, naming the file.
    """
    line = source.read_bytes() if isinstance(source, Path) else source
    origin = str(source) if isinstance(source, Path) else "the text given"
    try:
        key = serialization.load_ssh_public_key(line.strip())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(
            f"no public key in {origin}: {error}", hint="send the node.pub file made by `instahide node init`"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidInputError(
            f"the key in {origin} is {type(key).__name__}, not an elliptic-curve key",
            hint="make one with `instahide node init`, or `ssh-keygen -t ecdsa -b 384`",
        )
    return key


def public_key_fingerprint(source: Path | bytes) -> str:
    """``SHA256:...`` of a public key, the form OpenSSH prints (unpadded base64)."""
    line = load_public_key(source).public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def certificate_fingerprint(certificate: Path | bytes) -> str:
    """SHA-256 of a certificate (PEM file, or DER bytes as a TLS peer shows it), 64 hex digits."""
    if isinstance(certificate, bytes):
        return hashlib.sha256(certificate).hexdigest()
    return _load_certificate(certificate).fingerprint(hashes.SHA256()).hex()


def certificate_expiry(certificate: Path) -> datetime:
    """When a certificate ends (UTC)."""
    return _load_certificate(certificate).not_valid_after_utc


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    *,
    days: float,
    starting: datetime | None = None,
    before: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    start = starting or datetime.now(UTC)
    end = start + timedelta(days=days)
    if before is not None:
        end = min(end, before.not_valid_after_utc)
    if end <= start - CLOCK_SKEW:
        raise InvalidInputError(f"a certificate for {days} days would have ended", hint="give more days")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def check_server_names(names: Sequence[str]) -> None:
    """Raise InvalidInputError for what :func:`issue_server_certificate` would, before anything is made."""
    for name in _at_least_one(names):
        _alternative_name(name)


def _at_least_one(names: Sequence[str]) -> Sequence[str]:
    if isinstance(names, str) or not names:
        raise InvalidInputError(
            f"a server certificate needs a list of names, not {names!r}",
            hint='list the hosts and addresses the hospitals use, such as ["fl.example.org", "10.0.0.5"]',
        )
    return names


def _alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.split(".")
    plain = all(label.replace("-", "").isalnum() and label.isascii() and len(label) < 64 for label in labels)
    if not plain or len(name) > 253 or labels[-1].isdigit():
        raise InvalidInputError(
            f"{name!r} is neither a host name nor an IP address",
            hint="leave out the scheme, the port and wildcards",
        )
    return x509.DNSName(name)


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError as error:
        raise InvalidInputError(f"there is no certificate {path}", hint="check the path") from error
    except ValueError as error:
        raise IntegrityError(f"{path} is not a PEM certificate", hint="restore or issue it again") from error


def _load_authority(authority: CertificateFiles) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate = _load_certificate(authority.certificate)
    data = read_private_file(
        authority.key, what="the authority's key", restore="only the coordinator's machine holds it"
    )
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"{authority.key} is not a private key", hint="restore it") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise IntegrityError(
            f"{authority.key} is not the key of {authority.certificate}", hint="restore the pair together"
        )
    return certificate, key


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
