"""A certificate for the gateway from the operator's own authority instead of the study's.

A hospital's IT may want every server's certificate from its own CA. The gateway then shows that
certificate and the hospitals trust that CA for it: ``gateway-authority.crt`` in the study folder,
which travels in the join files. Everything on loopback stays with the study's own authority.

The files are tried as a node would meet them: one TLS handshake in memory for each name the
hospitals use, with OpenSSL's strict checks of extensions, which Python 3.13 and later make.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from instahide.atomic import atomic_write_bytes
from instahide.errors import InvalidInputError

from .private_files import write_private_file

GATEWAY_AUTHORITY = "gateway-authority.crt"
MAX_BYTES = 1 << 20
ASK = "ask who issued it for a server certificate with these names, and for its chain in one PEM file"


@dataclass(frozen=True, kw_only=True)
class ExternalCertificate:
    """PEM files: the server's certificate (intermediates after it), its key, the authority's certificate."""

    certificate: Path
    key: Path
    authority: Path

    def check(self, names: Sequence[str]) -> None:
        """Raise InvalidInputError unless a node that trusts ``authority`` would accept every name."""
        for path in (self.certificate, self.authority):
            _certificates(path)
        _private_key(self.key)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            server.load_cert_chain(self.certificate, self.key)
        except ssl.SSLError as error:
            raise InvalidInputError(
                f"{self.key} is not the key of {self.certificate}",
                hint="the server's own certificate comes first in its file",
            ) from error
        for name in names:
            self._check_name(server, name)

    def _check_name(self, server: ssl.SSLContext, name: str) -> None:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.load_verify_locations(cafile=str(self.authority))
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            _shake_hands(server, client, name)
        except ssl.SSLCertVerificationError as error:
            raise InvalidInputError(
                f"{self.certificate} does not serve {name} for who trusts {self.authority}: "
                f"{error.verify_message}",
                hint=ASK,
            ) from error
        except ssl.SSLError as error:
            raise InvalidInputError(f"no TLS with {self.certificate}: {error.reason}", hint=ASK) from error

    def write(self, folder: Path, *, file_name: str = "gateway") -> None:
        """Put certificate and key (0600, exclusively) into a folder as ``file_name.crt`` and ``.key``."""
        write_private_file(folder / f"{file_name}.key", _read(self.key))
        atomic_write_bytes(folder / f"{file_name}.crt", _read(self.certificate))

    def write_authority(self, folder: Path) -> None:
        """Put the authority's certificate into the study's folder."""
        atomic_write_bytes(folder / GATEWAY_AUTHORITY, _read(self.authority))


def gateway_authority(folder: Path, own: Path) -> Path:
    """What hospitals trust a study's gateway by: the certificate ``own``, unless another was put there."""
    other = folder / GATEWAY_AUTHORITY
    return other if other.exists() else own


def external_certificate(
    certificate: Path | None, key: Path | None, authority: Path | None
) -> ExternalCertificate | None:
    """The three files as one; None for none of them. Raises InvalidInputError for one or two."""
    if certificate is None and key is None and authority is None:
        return None
    if certificate is None or key is None or authority is None:
        raise InvalidInputError(
            "a certificate of your own takes three files",
            hint="give --certificate-file, --key-file and --ca-file together",
        )
    return ExternalCertificate(certificate=certificate, key=key, authority=authority)


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A TLS handshake between the two through memory. Raises what the client's verification raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    waiting = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):  # TLS needs three flights at most
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
        if not waiting:
            return
    raise ssl.SSLError("the handshake does not end")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}", hint="check the path") from error


def _certificates(path: Path) -> list[x509.Certificate]:
    data = _read(path)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise InvalidInputError(
            f"{path} holds no PEM certificate",
            hint=f"from DER: openssl x509 -inform der -in {path.name} -out {path.stem}.pem",
        ) from error


def _private_key(path: Path) -> None:
    data = _read(path)
    try:
        serialization.load_pem_private_key(data, password=None)
    except TypeError as error:  # OpenSSL would ask at the terminal, at every start of the gateway
        raise InvalidInputError(
            f"{path} has a passphrase, which nobody would be there to type",
            hint=f"openssl pkey -in {path.name} -out {path.stem}-open.pem",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(
            f"{path} is not a PEM private key", hint="it is the file made with the signing request"
        ) from error
