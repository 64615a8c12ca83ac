"""Keys, certificates and settings on this machine's disk: there, private, whole, and a pair.

Private keys are read to see that they are what they should be; nothing of one is shown.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from instahide.errors import InvalidInputError

from .checks import Outcome, failed, ok, warning

WARN_DAYS = 30
_SECONDS_A_DAY = 86_400


def private_file(
    path: Path,
    *,
    restore: str,
    is_good: Callable[[bytes], bool] = bool,
    limit: int = 1 << 20,
) -> Outcome:
    """A secret's file: a regular file (no link), of ours, readable by nobody else, with good content.

    ``restore`` says where the file comes from; ``is_good`` looks at its bytes (at most ``limit``).
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return failed(f"{path} is missing", fix=restore)
    if stat.S_ISLNK(status.st_mode):
        return failed(
            f"{path} is a symbolic link",
            fix="put the file itself there: whoever moves a link swaps the key",
        )
    if not stat.S_ISREG(status.st_mode):
        return failed(f"{path} is no regular file", fix=restore)
    if status.st_uid != os.geteuid():
        return failed(
            f"{path} belongs to user {status.st_uid}, this is user {os.geteuid()}",
            fix="run this as the user of the service, or `chown` the file to that user",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        return failed(
            f"{path} has mode {mode:04o}: others than its owner may read or write it", fix=f"chmod 600 {path}"
        )
    with path.open("rb") as file:
        if not is_good(file.read(limit)):
            return failed(f"{path} is not the key it should be", fix=restore)
    return ok(f"mode {mode:04o}, not a link, readable")


def is_node_key_of(public: Path) -> Callable[[bytes], bool]:
    """Whether bytes are the OpenSSH private key whose public half is in ``public``."""
    from ..provisioning import load_public_key

    return lambda data: _public_half(data, ssh=True) == _encoded(load_public_key(public))


def is_identity_key(data: bytes) -> bool:
    """Whether bytes are an Ed25519 private key in OpenSSH's format."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = serialization.load_ssh_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return isinstance(key, Ed25519PrivateKey)


def is_key_of_certificate(certificate: Path) -> Callable[[bytes], bool]:
    """Whether bytes are the PEM private key of the certificate in a file."""
    return lambda data: _public_half(data, ssh=False) == _encoded(read_certificate(certificate).public_key())


def read_certificate(path: Path) -> x509.Certificate:
    """A PEM certificate. Raises InvalidInputError if it cannot be read as one."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise InvalidInputError(
            f"the certificate {path} cannot be read: {error.strerror}", hint="restore it, or make it anew"
        ) from error
    except ValueError as error:
        raise InvalidInputError(
            f"{path} is not a PEM certificate", hint="restore it, or make it anew"
        ) from error


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and addresses (SANs) a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return (
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    )


def validity(certificate: x509.Certificate, *, renew: str, now: datetime | None = None) -> Outcome:
    """How long a certificate is valid yet; a warning from 30 days before its end."""
    moment = now or datetime.now(UTC)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    by_our_clock = f"UTC; this machine's clock says {moment:%Y-%m-%d %H:%M}"
    if moment < start:
        return failed(
            f"not valid before {start:%Y-%m-%d %H:%M} {by_our_clock}",
            fix="set this machine's clock; if it is right, the maker's was wrong: " + renew,
        )
    days = int((end - moment).total_seconds() // _SECONDS_A_DAY)
    if moment > end:
        return failed(
            f"ended on {end:%Y-%m-%d %H:%M} {by_our_clock}",
            fix=renew,
        )
    if days < WARN_DAYS:
        return warning(f"ends on {end:%Y-%m-%d}, in {days} days", fix=renew)
    return ok(f"ends on {end:%Y-%m-%d}, in {days} days")


def issued_certificate(path: Path, authority: Path, *, names: tuple[str, ...], renew: str) -> Outcome:
    """A server certificate: signed by the authority, for all of ``names``, and how long it is valid."""
    certificate, issuer = read_certificate(path), read_certificate(authority)
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return failed(f"{path} is not signed by {authority}", fix="restore the two together, or: " + renew)
    shown = names_of(certificate)
    if missing := [name for name in names if name.lower() not in {one.lower() for one in shown}]:
        return failed(
            f"it is for {', '.join(shown) or 'no name'}, not for {', '.join(missing)}, which hospitals use",
            fix=renew,
        )
    outcome = validity(certificate, renew=renew)
    return Outcome(outcome.state, f"for {', '.join(shown)}; {outcome.seen}", outcome.fix)


def private_folder(path: Path) -> Outcome:
    """A folder of ours: there, no link, mode 0700, and files can be made in it."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return failed(f"there is no folder {path}", fix=f"mkdir -m 700 {path}")
    if not stat.S_ISDIR(status.st_mode):
        return failed(f"{path} is not a folder of its own", fix="put a folder there, not a link or a file")
    mode = stat.S_IMODE(status.st_mode)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return failed(
            f"this user may not write in {path}", fix="run this as the service's user, or `chown` it"
        )
    if mode & 0o077:
        return warning(f"{path} has mode {mode:04o}: other users may look into it", fix=f"chmod 700 {path}")
    return ok(f"{path}, mode {mode:04o}, writable")


def trust_context(authority: Path) -> ssl.SSLContext:
    """TLS settings that trust this authority alone. Raises InvalidInputError if it is no certificate."""
    read_certificate(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=str(authority))
    return context


def _public_half(data: bytes, *, ssh: bool) -> object:
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    try:
        return _encoded(load(data, password=None).public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _encoded(key: object) -> bytes:
    return key.public_bytes(  # type: ignore[attr-defined, no-any-return]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
