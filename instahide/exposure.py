"""The exposure ledger: how often each private image has been shown, and no more than allowed.

Every further encoding of an image is one more equation about the same pixels; from about
twenty of them the published attacks rebuild the image (Carlini et al. 2020). So a site counts,
per image, and refuses beyond a budget. Two kinds of exposure are counted apart:

``released``
    The encoding itself left the site, as a file.
``through-updates``
    The encoding stayed, but a model update computed on it left. A first dense layer gives the
    encoded input back exactly from one gradient; only secure aggregation hides it.

What counts: an image is used once as *own* slot for every encoding made of it, and once as
*partner* for every encoding of another image it is mixed into. The budget (``max_own_uses``)
is on own uses; partner uses are always counted and reported, and have their own optional cap
(``max_partner_uses``, none by default, since an encoding with ``p`` private images cannot be
made without ``p - 1`` partner uses of every image). Where the exact number of partner uses is
not known (a resumed job), the ledger holds the upper bound.

What is stored: counts, and for each image a keyed hash (BLAKE2b-256 under a random 256-bit
salt that never leaves the ledger file, mode 0600). Never a key, a coefficient, a sign mask or
which images were mixed. The hash is of the pixels as encoded: the same picture resized or
re-windowed is another image to the ledger. A charge is never given back, because nobody can
know that a file was not copied.

The file is SQLite in WAL mode, fully synchronous: a reservation that returned survives
``kill -9`` and power loss, and of two processes after the last use exactly one gets it.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import IntegrityError, InvalidInputError, RefusedError
from .fingerprints import Fingerprints, fingerprint
from .images import ImageSet

RELEASED = "released"
THROUGH_UPDATES = "through-updates"
KINDS = (RELEASED, THROUGH_UPDATES)

FORMAT_VERSION = 1
LEDGER_VARIABLE = "INSTAHIDE_LEDGER"
_WAIT_SECONDS = 120.0  # for another process's transaction; one million images take a few seconds

_SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger (id INTEGER PRIMARY KEY CHECK (id = 1), format_version INTEGER, salt BLOB);
CREATE TABLE IF NOT EXISTS uses (image BLOB, kind TEXT, own INTEGER, partner INTEGER,
    PRIMARY KEY (image, kind)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS charges (job TEXT, kind TEXT, images TEXT, num_images INTEGER,
    own INTEGER, partner INTEGER, made_at TEXT, PRIMARY KEY (job, kind)) WITHOUT ROWID;
"""
_WANTED = "CREATE TEMP TABLE wanted (image BLOB PRIMARY KEY, copies INTEGER) WITHOUT ROWID"
_ADD_WANTED = "INSERT INTO wanted VALUES (?, 1) ON CONFLICT (image) DO UPDATE SET copies = copies + 1"
_COUNT_OVER = """
SELECT coalesce(sum(wanted.copies), 0) FROM wanted
LEFT JOIN uses ON uses.image = wanted.image AND uses.kind = :kind
WHERE coalesce(uses.{column}, 0) + wanted.copies * :more > :budget
"""
_CHARGE = """
INSERT INTO uses SELECT image, :kind, copies * :own, copies * :partner FROM wanted WHERE true
ON CONFLICT (image, kind) DO UPDATE SET own = own + excluded.own, partner = partner + excluded.partner
"""


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What a reservation put on the ledger; ``repeated`` when its job had been charged before."""

    job: str
    kind: str
    num_images: int
    own: int
    partner: int
    repeated: bool


@dataclass(frozen=True, kw_only=True)
class ExposureCounts:
    """Uses of each image so far, as own slot and as partner: two int64 arrays of shape (N,)."""

    own: NDArray[np.int64]
    partner: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ExposureSummary:
    """The ledger's whole content for one kind, with nothing about any single image."""

    kind: str
    num_images: int
    max_own: int
    max_partner: int


def default_ledger_path() -> Path:
    """``$INSTAHIDE_LEDGER``, else ``instahide/exposure.sqlite3`` in the user's state folder.

    One ledger per user rather than one per data folder: images are recognised by their
    content, so a copy of the data under another name meets the same budget.
    """
    if named := os.environ.get(LEDGER_VARIABLE):
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "instahide" / "exposure.sqlite3"


class ExposureLedger:
    """Counts and budgets of exposure, kept in one SQLite file.

    Safe to share between threads and processes on one machine: every call opens its own
    connection. Keep it on a local disk, and back it up like the data: whoever loses it has
    lost the count.

    Args:
        path: the ledger file; made, with its folder, when it is not there.

    Raises:
        IntegrityError: the file is not a ledger, is corrupt, or is of a later format.
        InvalidInputError: the folder cannot be written or cannot hold a WAL file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        _create_private(self.path)
        with self._connection() as connection:
            self._salt = self._set_up(connection)

    def __repr__(self) -> str:
        return f"ExposureLedger({self.path.name!r})"

    def reserve(
        self,
        images: ImageSet | Fingerprints,
        *,
        kind: str,
        own: int = 1,
        partner: int = 0,
        max_own_uses: int | None = 1,
        max_partner_uses: int | None = None,
        job: str | None = None,
    ) -> Charge:
        """Charge every image with ``own`` and ``partner`` uses, or none of them.

        Call it before the encodings exist. An image that occurs twice in ``images`` is charged
        twice. A ``job`` token makes the call repeatable: the second call with the same token,
        images and numbers changes nothing.

        Raises:
            RefusedError: some image would exceed a budget; nothing was charged. The message
                says how many images, never which.
            InvalidInputError: unknown kind, a negative number, or a token used for another charge.
        """
        _check_kind(kind)
        for name, number in [("own", own), ("partner", partner)]:
            if number < 0:
                raise InvalidInputError(f"{name}={number} uses is negative", hint="uses only ever rise")
        fingerprints = self._fingerprints(images)
        token = secrets.token_hex(16) if job is None else job
        numbers: dict[str, int | str] = {"kind": kind, "own": own, "partner": partner}
        with self._connection() as connection:
            _fill_wanted(connection, fingerprints)
            connection.execute("BEGIN IMMEDIATE")
            repeated = _already_charged(connection, token, fingerprints.commitment, numbers)
            if not repeated:
                _refuse_over_budget(connection, len(images), kind, "own", own, max_own_uses)
                _refuse_over_budget(connection, len(images), kind, "partner", partner, max_partner_uses)
                connection.execute(_CHARGE, numbers)
                made_at = datetime.now(UTC).isoformat(timespec="seconds")
                record = (token, kind, fingerprints.commitment, len(images), own, partner, made_at)
                connection.execute("INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?, ?)", record)
            connection.execute("COMMIT")
        return Charge(
            job=token, kind=kind, num_images=len(images), own=own, partner=partner, repeated=repeated
        )

    def counts(self, images: ImageSet | Fingerprints, *, kind: str) -> ExposureCounts:
        """Uses of each of the N images so far, in their order; zeros for an unknown image."""
        _check_kind(kind)
        fingerprints = self._fingerprints(images)
        query = "SELECT uses.image, own, partner FROM wanted JOIN uses USING (image) WHERE kind = ?"
        with self._connection() as connection:
            _fill_wanted(connection, fingerprints)
            known = {image: (own, partner) for image, own, partner in connection.execute(query, (kind,))}
        pairs = np.array([known.get(image, (0, 0)) for image in fingerprints], dtype=np.int64)
        pairs = pairs.reshape(-1, 2)
        return ExposureCounts(own=pairs[:, 0], partner=pairs[:, 1])

    def summary(self) -> tuple[ExposureSummary, ...]:
        """One line per kind: how many images are known and the largest counts."""
        query = "SELECT count(*), coalesce(max(own), 0), coalesce(max(partner), 0) FROM uses WHERE kind = ?"
        with self._connection() as connection:
            lines = [(kind, *connection.execute(query, (kind,)).fetchone()) for kind in KINDS]
        return tuple(
            ExposureSummary(kind=kind, num_images=n, max_own=own, max_partner=partner)
            for kind, n, own, partner in lines
        )

    def fingerprints(self, images: ImageSet) -> Fingerprints:
        """Keyed hashes of ``images``; pass them for the images to hash a large set only once."""
        return fingerprint(images, self._salt)

    def commitment(self, images: ImageSet) -> str:
        """Keyed hash of the whole set in its order, in hexadecimal: tells whether data changed."""
        return self.fingerprints(images).commitment

    def without_copies(self, images: ImageSet, *, allowed: int = 1) -> ImageSet:
        """The first ``allowed`` copies of each image, in their order; the set itself if that is all.

        An image that is in the data twice is encoded twice an epoch, so a budget of one encoding
        has no room for it.
        """
        kept = self.fingerprints(images).first_copies(allowed)
        return images if kept.all() else images.subset(kept)

    def _fingerprints(self, images: ImageSet | Fingerprints) -> Fingerprints:
        return images if isinstance(images, Fingerprints) else self.fingerprints(images)

    def _set_up(self, connection: sqlite3.Connection) -> bytes:
        if _write_ahead(connection) != "wal":
            raise InvalidInputError(
                f"ledger {self.path}: this file system cannot hold a write-ahead log",
                hint="keep the ledger on a local disk (--ledger PATH)",
            )
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        fresh = (1, FORMAT_VERSION, secrets.token_bytes(32))
        connection.execute("INSERT OR IGNORE INTO ledger VALUES (?, ?, ?)", fresh)
        version, salt = connection.execute("SELECT format_version, salt FROM ledger").fetchone()
        connection.execute("COMMIT")
        if version != FORMAT_VERSION or not isinstance(salt, bytes) or len(salt) != 32:
            raise IntegrityError(
                f"ledger {self.path} has format {version}, this version reads {FORMAT_VERSION}",
                hint="use the version of instahide that wrote it",
            )
        return salt

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(
                sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)
            ) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA temp_store = MEMORY")
                yield connection  # an open transaction is rolled back by closing
        except sqlite3.OperationalError as error:
            raise InvalidInputError(
                f"ledger {self.path}: {error}", hint="check that its folder is writable and not full"
            ) from error
        except sqlite3.DatabaseError as error:
            raise IntegrityError(
                f"ledger {self.path} is corrupt or not a ledger: {error}",
                hint="restore it from a backup; starting a new one forgets what was released",
            ) from error


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InvalidInputError(f"exposure kind {kind!r} is unknown", hint=f"one of {', '.join(KINDS)}")


def _create_private(path: Path) -> None:
    """Make the file with mode 0600 before SQLite does; its -wal and -shm files follow it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise InvalidInputError(
            f"ledger {path} cannot be opened: {error.strerror}", hint="choose another with --ledger PATH"
        ) from error


def _write_ahead(connection: sqlite3.Connection) -> str:
    """Switch to WAL; SQLite does not wait for its lock here when two processes start at once."""
    give_up = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def _fill_wanted(connection: sqlite3.Connection, known: Fingerprints) -> None:
    """The images in question, in a private table: filled before the write lock is taken."""
    connection.execute(_WANTED)
    connection.execute("BEGIN")
    connection.executemany(_ADD_WANTED, ((image,) for image in known))
    connection.execute("COMMIT")


def _already_charged(
    connection: sqlite3.Connection, job: str, images: str, numbers: dict[str, int | str]
) -> bool:
    query = "SELECT images, own, partner FROM charges WHERE job = ? AND kind = ?"
    found = connection.execute(query, (job, numbers["kind"])).fetchone()
    if found is None:
        return False
    if found != (images, numbers["own"], numbers["partner"]):
        raise InvalidInputError(
            "this job token was already charged for other images or other numbers",
            hint="a new job needs a new token",
        )
    return True


def _refuse_over_budget(
    connection: sqlite3.Connection, num_images: int, kind: str, column: str, more: int, budget: int | None
) -> None:
    if budget is None or more == 0:
        return
    numbers = {"kind": kind, "more": more, "budget": budget}
    (over,) = connection.execute(_COUNT_OVER.format(column=column), numbers).fetchone()
    if over:
        (copies,) = connection.execute("SELECT max(copies) FROM wanted").fetchone()
        slot = "as own slot" if column == "own" else "as partner"
        raise RefusedError(
            f"{over} of {num_images} images would pass the budget of {budget} use(s) {slot}, kind {kind}",
            hint="every further encoding makes an image easier to rebuild; raise the budget"
            + (" (--max-releases)" if kind == RELEASED and column == "own" else "")
            + " only knowingly"
            + (f" (an image that is {copies} times in the data counts {copies} times)" if copies > 1 else ""),
        )
