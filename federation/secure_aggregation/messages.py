"""The messages of the protocol, in the order in which they are sent.

    SessionRequest  server -> site    Advert         site -> server
    ReportRequest   server -> site    Report         site -> server
    ConfirmRequest  server -> site    Confirmation   site -> server      only with confirm-survivors
    UnmaskRequest   server -> site    UnmaskAnswer   site -> server

Sets of sites are bit strings over the roster (``Roster.to_bits``); everything listed "for each
site" is in roster order. Lengths that depend on the sets are checked by the session that receives
the message; the bounds here hold for any roster. ``PROTOCOL.md`` tells what each is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from .key_agreement import SEED_BYTES, SESSION_ID_BYTES
from .parameters import MAX_CHANNELS, MAX_SITES, MAX_VECTOR_LENGTH
from .records import Octets, Record, bulk, octet_list, octets, text, whole
from .roster import HASH_BYTES, PUBLIC_KEY_BYTES, SIGNATURE_BYTES
from .sealing import OVERHEAD_BYTES

SET_BYTES: Final = -(-MAX_SITES // 8)
ADVERT_BYTES: Final = PUBLIC_KEY_BYTES + SIGNATURE_BYTES
MAX_ROUND: Final = 2**32
MAX_ATTEMPT: Final = 2**16
MAX_NAME: Final = 64
MAX_PACKAGE_BYTES: Final = OVERHEAD_BYTES + SEED_BYTES * MAX_SITES
MAX_STATEMENT_BYTES: Final = 1 + 16 + 2 * SET_BYTES + SIGNATURE_BYTES
MAX_SHARES_BYTES: Final = SEED_BYTES * (MAX_SITES + 1) ** 2 // 4  # u (1 + n - u) at its largest


@dataclass(frozen=True, kw_only=True)
class SessionRequest(Record):
    """Opens a session: the id, and hashes that both ends must agree on."""

    kind: ClassVar[str] = "session request"

    session_id: bytes = octets(SESSION_ID_BYTES)
    roster_sha256: bytes = octets(HASH_BYTES)
    test_vector_sha256: bytes = octets(HASH_BYTES)


@dataclass(frozen=True, kw_only=True)
class Advert(Record):
    """A site's session key under its identity key's signature."""

    kind: ClassVar[str] = "advert"

    session_id: bytes = octets(SESSION_ID_BYTES)
    site: str = text(MAX_NAME)
    public_key: bytes = octets(PUBLIC_KEY_BYTES)
    signature: bytes = octets(SIGNATURE_BYTES)


@dataclass(frozen=True, kw_only=True)
class ReportRequest(Record):
    """Asks the participants for masked vectors.

    ``cohort`` and ``adverts`` (public key and signature, 96 bytes for each site of the cohort) are
    empty once every participant has seen them. ``statements`` are signed survivor sets of the last
    round, ``SurvivorStatement.to_bytes``.
    """

    kind: ClassVar[str] = "report request"

    session_id: bytes = octets(SESSION_ID_BYTES)
    server_round: int = whole(1, MAX_ROUND)
    attempt: int = whole(1, MAX_ATTEMPT)
    participants: bytes = octets(1, SET_BYTES)
    cohort: bytes = octets(0, SET_BYTES)
    adverts: bytes = octets(0, ADVERT_BYTES * MAX_SITES, shown=False)
    statements: tuple[bytes, ...] = octet_list(MAX_SITES, MAX_STATEMENT_BYTES)


@dataclass(frozen=True, kw_only=True)
class Report(Record):
    """A site's masked vector and channels, its sealed packages and its check values.

    ``packages``: one for each other participant. ``check_values``: 32 bytes for each participant,
    of k_ij for j, and of b_i in the site's own place.
    """

    kind: ClassVar[str] = "report"

    session_id: bytes = octets(SESSION_ID_BYTES)
    site: str = text(MAX_NAME)
    server_round: int = whole(1, MAX_ROUND)
    attempt: int = whole(1, MAX_ATTEMPT)
    participants: bytes = octets(1, SET_BYTES)
    vector: Octets = bulk(1, 8 * MAX_VECTOR_LENGTH)  # noqa: RUF009
    channels: Octets = bulk(0, 8 * MAX_CHANNELS)  # noqa: RUF009
    packages: tuple[bytes, ...] = octet_list(MAX_SITES, MAX_PACKAGE_BYTES)
    check_values: bytes = octets(SEED_BYTES, SEED_BYTES * MAX_SITES, shown=False)


@dataclass(frozen=True, kw_only=True)
class ConfirmRequest(Record):
    """Tells the survivors who survived, before anybody gives shares."""

    kind: ClassVar[str] = "confirm request"

    session_id: bytes = octets(SESSION_ID_BYTES)
    server_round: int = whole(1, MAX_ROUND)
    attempt: int = whole(1, MAX_ATTEMPT)
    survivors: bytes = octets(1, SET_BYTES)


@dataclass(frozen=True, kw_only=True)
class Confirmation(Record):
    """One site's signature on the set of survivors it was told; it signs one set for an attempt."""

    kind: ClassVar[str] = "confirmation"

    session_id: bytes = octets(SESSION_ID_BYTES)
    site: str = text(MAX_NAME)
    server_round: int = whole(1, MAX_ROUND)
    attempt: int = whole(1, MAX_ATTEMPT)
    survivors: bytes = octets(1, SET_BYTES)
    signature: bytes = octets(SIGNATURE_BYTES)


@dataclass(frozen=True, kw_only=True)
class UnmaskRequest(Record):
    """Tells one site who survived, with the package each other survivor sealed for it.

    ``confirmations``: the survivors' statements (``SurvivorStatement.to_bytes``), if the run asks for them.
    """

    kind: ClassVar[str] = "unmask request"

    session_id: bytes = octets(SESSION_ID_BYTES)
    server_round: int = whole(1, MAX_ROUND)
    attempt: int = whole(1, MAX_ATTEMPT)
    survivors: bytes = octets(1, SET_BYTES)
    packages: tuple[bytes, ...] = octet_list(MAX_SITES, MAX_PACKAGE_BYTES)
    confirmations: tuple[bytes, ...] = octet_list(MAX_SITES, MAX_STATEMENT_BYTES)


@dataclass(frozen=True, kw_only=True)
class UnmaskAnswer(Record):
    """One site's shares, and its signature on the set of survivors it answered for.

    ``shares``: for each survivor i, 32 bytes of b_i, then 32 of k_ij for each missing site j.
    """

    kind: ClassVar[str] = "unmask answer"

    session_id: bytes = octets(SESSION_ID_BYTES)
    site: str = text(MAX_NAME)
    server_round: int = whole(1, MAX_ROUND)
    attempt: int = whole(1, MAX_ATTEMPT)
    survivors: bytes = octets(1, SET_BYTES)
    shares: bytes = octets(SEED_BYTES, MAX_SHARES_BYTES, shown=False)
    signature: bytes = octets(SIGNATURE_BYTES)
