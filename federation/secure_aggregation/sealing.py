"""Sealed packages: shares that the server carries from one site to another and cannot read.

    key      HKDF(sealing key of the pair, salt, info = (round, attempt, participants, sender, recipient))
    package  salt (16 bytes) || ChaCha20-Poly1305(key, nonce 0, shares, associated data = info)

Every package has a key of its own, so the constant nonce is never used twice with one. The salt is
fresh from the operating system: even a site that was copied while running, and reports twice for
one attempt, does not seal two things under one key. RFC 8439.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from instahide.errors import IntegrityError

from .key_agreement import PairKeys, Position, derive
from .statements import statement

SALT_BYTES: Final = 16
OVERHEAD_BYTES: Final = SALT_BYTES + 16
_NONCE: Final = bytes(12)


class PackageError(IntegrityError):
    """A package does not open: altered, of another attempt, or its sender made it wrongly."""

    def __init__(self, sender: str, recipient: str) -> None:
        super().__init__(
            f"the package from {sender} to {recipient} does not open",
            hint=f"{sender}, or whoever carried the package, altered it; no share was given out",
        )
        self.sender, self.recipient = sender, recipient


def seal(
    keys: PairKeys, position: Position, sender: str, recipient: str, content: bytes, *, salt: bytes
) -> bytes:
    """``content`` for ``recipient`` alone; ``salt`` is 16 fresh bytes."""
    info = statement("package", *position, sender, recipient)
    return salt + ChaCha20Poly1305(derive(keys.sealing, info, salt=salt)).encrypt(_NONCE, content, info)


def open_package(keys: PairKeys, position: Position, sender: str, recipient: str, package: bytes) -> bytes:
    """The content sealed by ``sender`` for exactly this position; else PackageError."""
    info = statement("package", *position, sender, recipient)
    salt, sealed = bytes(package[:SALT_BYTES]), bytes(package[SALT_BYTES:])
    if len(salt) < SALT_BYTES:
        raise PackageError(sender, recipient)
    try:
        return ChaCha20Poly1305(derive(keys.sealing, info, salt=salt)).decrypt(_NONCE, sealed, info)
    except InvalidTag as error:
        raise PackageError(sender, recipient) from error
