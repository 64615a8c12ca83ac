"""Signatures on join files: a request by every key it names, an answer by the coordinator's identity.

What is signed is the file without its signatures, as JSON in one form only (``canonical_json``),
under a purpose of its own (``identity``). Node keys sign with ECDSA over SHA-384; what they sign
for Flower is a time stamp, which never begins like this. The signatures stand in the file as

    "signatures": {"node-key": ..., "identity-key": ..., "replaced-node-key": ..., ...}

in base64, with the two ``replaced-`` ones where keys are replaced: whoever has the old keys, and
nobody else, can put new ones in their place.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from instahide.errors import IntegrityError, InvalidInputError

from .audit_log import canonical_json
from .identity import Identity, signature_is_good
from .provisioning import load_public_key

SIGNATURES = "signatures"
NODE, IDENTITY = "node-key", "identity-key"
REPLACED_NODE, REPLACED_IDENTITY = "replaced-node-key", "replaced-identity-key"
REQUEST_PURPOSE, ANSWER_PURPOSE = "join request 1", "join answer 1"
_NODE_PREFIX = b"instahide-fl\0node key: join request 1\0"
_TAMPERED = "ask for the file anew; compare safety numbers by telephone before you use it"


class NamedKeys(Protocol):
    """The public keys that a request names, as OpenSSH lines; "" for none."""

    @property
    def public_key(self) -> str: ...
    @property
    def identity_key(self) -> str: ...
    @property
    def replaced_public_key(self) -> str: ...
    @property
    def replaced_identity_key(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class RequestKeys:
    """The private keys that sign a request; ``repr`` shows none."""

    node: ec.EllipticCurvePrivateKey
    identity: Identity
    replaced_node: ec.EllipticCurvePrivateKey | None = None
    replaced_identity: Identity | None = None

    def sign(self, message: bytes) -> dict[str, str]:
        """A signature of each key, in base64."""
        signatures = {NODE: _node_signature(self.node, message)}
        signatures[IDENTITY] = _text(self.identity.sign(message, purpose=REQUEST_PURPOSE))
        if self.replaced_node is not None:
            signatures[REPLACED_NODE] = _node_signature(self.replaced_node, message)
        if self.replaced_identity is not None:
            signatures[REPLACED_IDENTITY] = _text(
                self.replaced_identity.sign(message, purpose=REQUEST_PURPOSE)
            )
        return signatures

    def __repr__(self) -> str:
        return f"RequestKeys({self.identity!r})"


def signed_bytes(table: Mapping[str, Any]) -> bytes:
    """What the signatures are over. Raises InvalidInputError for what is not plain JSON."""
    try:
        return canonical_json(dict(table))
    except (TypeError, ValueError) as error:
        raise InvalidInputError("a join file holds what is not plain JSON", hint=str(error)) from error


def sign_answer(identity: Identity, message: bytes) -> str:
    """The coordinator's signature on an answer, in base64."""
    return _text(identity.sign(message, purpose=ANSWER_PURPOSE))


def check_request(signatures: Mapping[str, Any], message: bytes, keys: NamedKeys) -> None:
    """Raise IntegrityError unless each key a request names signed it, and no other did."""
    named = {
        NODE: keys.public_key,
        IDENTITY: keys.identity_key,
        REPLACED_NODE: keys.replaced_public_key,
        REPLACED_IDENTITY: keys.replaced_identity_key,
    }
    named = {name: key for name, key in named.items() if key}
    _check_names(signatures, set(named))
    for name, key in named.items():
        signature = _octets(signatures[name])
        if name in (IDENTITY, REPLACED_IDENTITY):
            good = signature_is_good(key, signature, message, purpose=REQUEST_PURPOSE)
        else:
            good = _node_signature_is_good(key, signature, message)
        if not good:
            raise IntegrityError(f"the request is not signed by its {name}", hint=_TAMPERED)


def check_answer(signatures: Mapping[str, Any], message: bytes, identity_key: str) -> None:
    """Raise IntegrityError unless the identity key in an answer signed it."""
    _check_names(signatures, {IDENTITY})
    if not signature_is_good(identity_key, _octets(signatures[IDENTITY]), message, purpose=ANSWER_PURPOSE):
        raise IntegrityError("the join file is not signed by the coordinator's key in it", hint=_TAMPERED)


def _check_names(signatures: Mapping[str, Any], expected: set[str]) -> None:
    if set(signatures) != expected:
        wrong = sorted(set(signatures) ^ expected)[0]
        raise IntegrityError(f"the signature {wrong!r:.60} is missing or too many", hint=_TAMPERED)


def _node_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> str:
    return _text(key.sign(_NODE_PREFIX + message, ec.ECDSA(hashes.SHA384())))


def _node_signature_is_good(line: str, signature: bytes, message: bytes) -> bool:
    try:
        load_public_key(line.encode("ascii")).verify(
            signature, _NODE_PREFIX + message, ec.ECDSA(hashes.SHA384())
        )
    except InvalidSignature:
        return False
    return True


def _text(signature: bytes) -> str:
    return base64.b64encode(signature).decode("ascii")


def _octets(text: object) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except (binascii.Error, ValueError):
        return b""
