"""Whether the coordinator knows this node's key, asked without changing anything there.

A node announces itself with ``activate-node``: its public key, and how often it will give a sign
of life. Flower looks the key up before it looks at that interval. So an announcement with the
interval 0, which is never allowed, is answered with one code for a key that is not registered and
with another for one that is; the node is not marked as online either way.

The call is signed as every call of a node is (ECDSA with SHA-256 over the time stamp), so a third
answer, HTTP 401, means that the stamp's age was not accepted, which is the clock's fault.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from instahide import __version__

from ..provisioning import load_node_key
from ..release import RELEASE_HEADER
from .checks import Outcome, failed, ok, skipped, warning
from .network import SET_CLOCK, Address, trusted_connection, unreachable

# Flower's codes (flwr.supercore.error.ApiErrorCode); a test compares them with the installed Flower.
INVALID_INTERVAL, NOT_ACTIVATED = 2003, 2004
ACTIVATE = "/v1/fleet/activate-node"
MOST_BYTES = 4096


@dataclass(frozen=True)
class Answer:
    """What came back: HTTP status, Flower's code or None, and the coordinator's release or None."""

    status: int
    code: int | None
    release: str | None


def check_registration(address: Address, private_key: Path) -> Outcome:
    """Whether the coordinator has this node's key."""
    try:
        answer = ask(address, load_node_key(private_key))
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        return unreachable(address, error)
    if answer.code == INVALID_INTERVAL:
        return ok("the coordinator knows this node's key")
    if answer.code == NOT_ACTIVATED:
        return failed(
            "the coordinator does not know this node's key",
            fix="send it this folder's NAME.request.json, for `instahide coordinator admit`; if the key was "
            "revoked or replaced there, see `instahide node rotate --help`",
        )
    if answer.status == http.HTTPStatus.UNAUTHORIZED:
        return failed(
            "the coordinator did not accept this node's signature or its time stamp",
            fix=f"{SET_CLOCK}; if the clocks agree, the key file is damaged: restore it",
        )
    return skipped(
        f"the coordinator answered HTTP {answer.status}, from which it cannot be told",
        fix="see whether the coordinator's SuperLink is up; `instahide node start` tells as well",
    )


def check_release(address: Address, private_key: Path) -> Outcome:
    """Whether the coordinator runs this release; it tells whoever signs a call."""
    try:
        answer = ask(address, load_node_key(private_key))
    except (ssl.SSLCertVerificationError, OSError, UnicodeError, http.client.HTTPException) as error:
        return unreachable(address, error)
    if answer.release is None:
        return skipped(
            f"this is release {__version__}; the coordinator did not say which it runs",
            fix="compare by telephone: `instahide --version` on both machines",
        )
    if answer.release != __version__:
        return warning(
            f"this is release {__version__}, the coordinator runs {answer.release:.40}",
            fix="install one release of instahide-fl on both sides: a site refuses another protocol version",
        )
    return ok(f"both sides run release {__version__}")


def ask(address: Address, key: ec.EllipticCurvePrivateKey) -> Answer:
    """Announce the node with an interval that is never allowed. Raises OSError, HTTPException."""
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    stamp = datetime.now(UTC).isoformat()
    signature = key.sign(stamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    headers = {
        "Content-Type": "application/protobuf",
        "Accept": "application/protobuf",
        "flwr-public-key": base64.b64encode(public).decode("ascii"),
        "flwr-timestamp": stamp,
        "flwr-signature": base64.b64encode(signature).decode("ascii"),
    }
    connection = trusted_connection(address)
    try:
        connection.request("POST", ACTIVATE, body=announcement(public), headers=headers)
        answer = connection.getresponse()
        return Answer(answer.status, _code(answer.read(MOST_BYTES)), answer.getheader(RELEASE_HEADER))
    finally:
        connection.close()


def announcement(public_key: bytes) -> bytes:
    """Flower's ActivateNodeRequest (protocol buffers): field 1 the key, field 2 the interval, 0 left out."""
    length, encoded = len(public_key), bytearray()
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    return b"\x0a" + bytes([*encoded, length]) + public_key


def _code(body: bytes) -> int | None:
    try:
        code = json.loads(body)["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, int) else None
