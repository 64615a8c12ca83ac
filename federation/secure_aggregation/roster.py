"""Who takes part: names, identity keys and parameters, under one hash that hospitals approve.

The roster is fixed before a run and the same at every party. Its SHA-256 is compared over another
channel, so whoever carries the messages cannot add a site, swap a key or lower the threshold.
A site's index x = 1..n is its place among the names in order; it is the point at which its shares
are taken. Sets of sites travel and are signed as bit strings over these indices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from instahide.errors import IntegrityError, InvalidInputError

from .parameters import AggregationParameters
from .statements import PROTOCOL_VERSION, statement_hash

PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
HASH_BYTES: Final = 32
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The parties of one run.

    Args:
        run_name: the run these keys and parameters are for.
        parameters: see :class:`AggregationParameters`.
        identities: site name -> Ed25519 public key, 32 bytes.
        settings_sha256: hash of every other setting that sites and server must share (the
            quantisation plan, the training settings), 32 bytes.

    Raises InvalidInputError for names, keys or numbers that do not fit.
    """

    run_name: str
    parameters: AggregationParameters
    identities: Mapping[str, bytes]
    settings_sha256: bytes
    names: tuple[str, ...] = field(init=False)
    digest: bytes = field(init=False)
    """SHA-256 over everything above: what a hospital compares and approves."""

    def __post_init__(self) -> None:
        names = tuple(sorted(self.identities))
        for name in (self.run_name, *names):
            if not _NAME.fullmatch(name):
                raise InvalidInputError(
                    f"{name!r:.100} is no name", hint="letters, digits, '.', '_', '-'; up to 64 characters"
                )
        if len(names) != self.parameters.num_sites:
            raise InvalidInputError(
                f"{len(names)} sites, but parameters for {self.parameters.num_sites}",
                hint="make the parameters for this number of sites",
            )
        keys = [bytes(self.identities[name]) for name in names]
        if any(len(key) != PUBLIC_KEY_BYTES for key in keys) or len(set(keys)) != len(keys):
            raise InvalidInputError(
                "an identity key is not 32 bytes, or two sites have the same one",
                hint="every site needs an Ed25519 key of its own",
            )
        if len(self.settings_sha256) != HASH_BYTES:
            raise InvalidInputError("the settings' hash is not 32 bytes", hint="give a SHA-256 digest")
        object.__setattr__(self, "identities", dict(zip(names, keys, strict=True)))
        object.__setattr__(self, "names", names)
        pairs = [part for name in names for part in (name, self.identities[name])]
        header = (PROTOCOL_VERSION, self.run_name, self.parameters.digest(), self.settings_sha256)
        object.__setattr__(self, "digest", statement_hash("roster", *header, len(names), *pairs))

    def index(self, name: str) -> int:
        """The site's index, 1..n. Raises InvalidInputError for a name that is not in the roster."""
        if name not in self.identities:
            raise InvalidInputError(f"{name!r:.100} is not in the roster", hint=f"sites: {_list(self.names)}")
        return self.names.index(name) + 1

    def sort(self, names: Iterable[str]) -> tuple[str, ...]:
        """``names`` in roster order. Raises InvalidInputError for an unknown or repeated one."""
        listed = list(names)
        indices = [self.index(name) for name in listed]
        if len(set(indices)) != len(indices):
            raise InvalidInputError("a site is named twice", hint="a set of sites holds each once")
        return tuple(self.names[index - 1] for index in sorted(indices))

    def to_bits(self, names: Iterable[str]) -> bytes:
        """A set of sites as ceil(n / 8) bytes: site x is bit (x - 1) % 8 of byte (x - 1) // 8."""
        bits = bytearray(self.set_bytes)
        for name in self.sort(names):
            place = self.index(name) - 1
            bits[place // 8] |= 1 << place % 8
        return bytes(bits)

    def from_bits(self, bits: bytes) -> tuple[str, ...]:
        """The inverse of :meth:`to_bits`, in roster order; InvalidInputError for another length or bit."""
        number = int.from_bytes(bits, "little")
        if len(bits) != self.set_bytes or number >> len(self.names):
            raise InvalidInputError(
                "a set of sites has the wrong length or a bit that is no site's",
                hint="both ends need the same roster",
            )
        return tuple(name for place, name in enumerate(self.names) if number >> place & 1)

    @property
    def set_bytes(self) -> int:
        """Bytes of a set of sites."""
        return -(-len(self.names) // 8)

    def verify(self, name: str, signature: bytes, signed: bytes) -> None:
        """Return quietly if ``signature`` on ``signed`` is that of ``name``; else IntegrityError."""
        self.index(name)
        try:
            Ed25519PublicKey.from_public_bytes(self.identities[name]).verify(bytes(signature), signed)
        except (InvalidSignature, ValueError) as error:
            raise IntegrityError(
                f"a message is said to be from {name}, but its signature is not",
                hint="compare the roster's hash with the other sites; somebody may sit between you",
            ) from error


@dataclass(frozen=True)
class SiteIdentity:
    """A site's name and its long-term signing key, which never leaves it."""

    name: str
    signing_key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls, name: str) -> SiteIdentity:
        """A new key from the operating system's randomness."""
        return cls(name, Ed25519PrivateKey.generate())

    @property
    def public_key(self) -> bytes:
        """The 32 bytes that go into the roster."""
        return self.signing_key.public_key().public_bytes_raw()

    def check_listed(self, roster: Roster) -> None:
        """Raises InvalidInputError unless ``roster`` lists this name with this key."""
        roster.index(self.name)
        if roster.identities[self.name] != self.public_key:
            raise InvalidInputError(
                f"the roster lists another identity key for {self.name}",
                hint="send the coordinator this site's public key and compare the roster's hash again",
            )


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
