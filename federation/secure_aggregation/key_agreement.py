"""From adverts to keys: X25519 between every two sites, HKDF-SHA256 for everything after it.

    advert          Ed25519 signature over (run, roster hash, session, name, X25519 public key)
    T               hash of (roster hash, session, every advert of the cohort in order)
    pair keys       HKDF(X25519(own, theirs), salt = T, info = both names)     -> masking, sealing
    k_ij            HKDF(masking key, info = (round, attempt, participants))
    expansion       HKDF(seed, info)                                          -> stream key, check value

T holds all public keys, so two sites that were shown different cohorts derive different keys. A
masking key never leaves the site; only seeds k_ij of one attempt are shared. From the check value
nothing can be learned about the stream key (HKDF is a pseudorandom function of the seed).

Langley et al., RFC 7748 (X25519); Krawczyk and Eronen, RFC 5869 (HKDF).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from instahide.errors import IntegrityError

from .roster import Roster
from .statements import statement, statement_hash

KEY_BYTES: Final = 32
SEED_BYTES: Final = 32
SESSION_ID_BYTES: Final = 16


class Position(NamedTuple):
    """A round's attempt and the set of sites asked (bit string): what every key and seal is bound to."""

    server_round: int
    attempt: int
    participants: bytes


@dataclass(frozen=True)
class PairKeys:
    """What two sites share for a session."""

    masking: bytes = field(repr=False)
    sealing: bytes = field(repr=False)


class Expansion(NamedTuple):
    """A seed's two halves: the key of its mask's stream, and the value that shows it was rebuilt rightly."""

    stream_key: bytes
    check_value: bytes


def derive(key: bytes, info: bytes, *, length: int = KEY_BYTES, salt: bytes = b"") -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt or None, info=info).derive(key)


def advert_statement(roster: Roster, session_id: bytes, name: str, public_key: bytes) -> bytes:
    """The bytes a site signs to announce its session key."""
    return statement("advert", roster.run_name, roster.digest, session_id, name, public_key)


def transcript_hash(roster: Roster, session_id: bytes, public_keys: Mapping[str, bytes]) -> bytes:
    """T: the whole set-up of a session in 32 bytes; ``public_keys`` are those of its cohort."""
    ordered = [part for name in roster.sort(public_keys) for part in (name, public_keys[name])]
    return statement_hash("transcript", roster.digest, session_id, len(public_keys), *ordered)


def agree(own: X25519PrivateKey, own_name: str, peer: str, peer_key: bytes, transcript: bytes) -> PairKeys:
    """The keys that ``own_name`` and ``peer`` share in this session.

    Raises IntegrityError if the peer's key is one of the few points that make the secret constant.
    """
    try:
        secret = own.exchange(X25519PublicKey.from_public_bytes(peer_key))
    except ValueError as error:
        raise IntegrityError(
            f"{peer} announced a key that gives no secret",
            hint="its software or machine is not to be trusted",
        ) from error
    info = statement("pair", *sorted((own_name, peer)))
    keys = derive(secret, info, length=2 * KEY_BYTES, salt=transcript)
    return PairKeys(masking=keys[:KEY_BYTES], sealing=keys[KEY_BYTES:])


def pairwise_seed(keys: PairKeys, position: Position) -> bytes:
    """k_ij of one attempt: the same at both sites, unrelated to that of any other attempt."""
    return derive(keys.masking, statement("pairwise-mask", *position))


def expand(seed: bytes) -> Expansion:
    """Stream key and check value of a self-mask or pairwise seed."""
    halves = derive(seed, statement("expand"), length=2 * KEY_BYTES)
    return Expansion(halves[:KEY_BYTES], halves[KEY_BYTES:])
