"""The set-up of a session, checked: whose session keys, and what this site shares with each of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from instahide.errors import IntegrityError, InvalidInputError, RefusedError

from .key_agreement import PairKeys, advert_statement, agree, transcript_hash
from .messages import ADVERT_BYTES
from .roster import PUBLIC_KEY_BYTES, Roster


@dataclass(frozen=True)
class Cohort:
    """Sites of a session in roster order, its transcript hash T, and this site's keys with each other one."""

    names: tuple[str, ...]
    transcript: bytes
    keys: dict[str, PairKeys] = field(repr=False)


def open_cohort(
    roster: Roster, session_id: bytes, own: str, private_key: X25519PrivateKey, cohort: bytes, adverts: bytes
) -> Cohort:
    """Check every advert of ``cohort`` (bit string) and derive the keys; ``adverts`` are 96 bytes a site.

    Raises:
        InvalidInputError: the lengths do not fit the roster.
        IntegrityError: a signature is not its site's, or the own advert is altered or absent.
        RefusedError: fewer sites than minimum-sites.
    """
    names = roster.from_bits(cohort)
    if len(adverts) != ADVERT_BYTES * len(names):
        raise InvalidInputError("not one advert for each site of the cohort", hint="96 bytes for each")
    public_keys: dict[str, bytes] = {}
    for place, name in enumerate(names):
        entry = adverts[ADVERT_BYTES * place : ADVERT_BYTES * (place + 1)]
        public_keys[name], signature = entry[:PUBLIC_KEY_BYTES], entry[PUBLIC_KEY_BYTES:]
        roster.verify(name, signature, advert_statement(roster, session_id, name, public_keys[name]))
    if public_keys.get(own) != private_key.public_key().public_bytes_raw():
        raise IntegrityError(
            "this site's own advert is absent or altered", hint="the server must begin a new session"
        )
    check_size(roster, names, "the session's cohort")
    transcript = transcript_hash(roster, session_id, public_keys)
    keys = {
        name: agree(private_key, own, name, key, transcript)
        for name, key in public_keys.items()
        if name != own
    }
    return Cohort(names, transcript, keys)


def check_size(roster: Roster, names: tuple[str, ...], what: str) -> None:
    """RefusedError if ``names`` are fewer than minimum-sites."""
    least = roster.parameters.minimum_sites
    if len(names) < least:
        raise RefusedError(
            f"{what} has {len(names)} sites", hint=f"this run opens sums over {least} sites or more only"
        )
