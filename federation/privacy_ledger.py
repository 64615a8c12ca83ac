"""The privacy ledger: every charge ever made, appended before what it pays for happens.

One SQLite file, one row an event (:class:`~federation.accounting.PrivacyEvent`), never changed: the
database itself refuses updates and deletions. A row is committed, and synced to disk, *before* the
training it pays for begins; whoever is killed afterwards has paid, and asks again at the price of
another row. Nothing is ever refunded, because even an abandoned training may have shown something
(that it failed, how long it took).

Each row carries a SHA-256 over itself and the row before it. A row that was edited, removed from the
middle or damaged by the disk is found when the file is opened, and then the site refuses, as without a count
no cap can be kept. Rows cut from the end, or a file put back from a backup, this file alone cannot show.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from instahide.errors import IntegrityError, InvalidInputError

from .accounting import PrivacyEvent

LEDGER_NAME: Final = "privacy.sqlite3"
_APPLICATION_ID: Final = 0x49485056
_FORMAT: Final = 1
_SCHEMA: Final = f"""
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY, made_at TEXT NOT NULL, run_name TEXT NOT NULL,
    server_round INTEGER NOT NULL, mechanism TEXT NOT NULL,
    noise_multiplier REAL NOT NULL, sample_rate REAL NOT NULL,
    num_steps INTEGER NOT NULL, num_draws INTEGER NOT NULL, digest TEXT NOT NULL) STRICT;
CREATE TRIGGER no_change BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER no_removal BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'append only'); END;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
"""
_INSERT: Final = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SELECT: Final = """
SELECT sequence, digest,
    made_at, run_name, server_round, mechanism, noise_multiplier, sample_rate, num_steps, num_draws
FROM events ORDER BY sequence
"""


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """A charge as it was recorded: its number from 1, when (UTC), and for what."""

    sequence: int
    made_at: str
    event: PrivacyEvent
    digest: str


class PrivacyLedger:
    """The charges in one file; made with its folder when it is not there.

    Raises:
        IntegrityError: the file is not a ledger, is damaged, or is of a later format.
        InvalidInputError: the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise InvalidInputError(
                f"the privacy ledger cannot be written: {error.strerror}", hint="check the state folder"
            ) from error
        with self._transaction() as connection:
            if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in _statements(_SCHEMA):
                    connection.execute(statement)
        self.entries()

    def __repr__(self) -> str:
        return f"PrivacyLedger({self.path.name!r})"

    def charge(self, event: PrivacyEvent) -> LedgerEntry:
        """Append ``event``; when this returns it is on the disk.

        Raises:
            IntegrityError: the file is damaged.
            InvalidInputError: it cannot be written: the disk is full, say.
        """
        with self._transaction() as connection:
            entries = _read(connection)
            number = len(entries) + 1
            before = entries[-1].digest if entries else ""
            made_at = datetime.now(UTC).isoformat(timespec="seconds")
            row = (made_at, *event.to_dict().values())
            digest = _digest(before, number, row)
            connection.execute(_INSERT, (number, *row, digest))
        return LedgerEntry(sequence=number, made_at=made_at, event=event, digest=digest)

    def entries(self) -> tuple[LedgerEntry, ...]:
        """Every charge in order, all of them checked.

        Raises:
            IntegrityError: a row is missing, changed or not an event.
        """
        with self._transaction() as connection:
            return _read(connection)

    def events(self, *, run_name: str | None = None) -> tuple[PrivacyEvent, ...]:
        """The events of all entries, or of one run's."""
        events = (entry.event for entry in self.entries())
        return tuple(event for event in events if run_name is None or event.run_name == run_name)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self.path, isolation_level=None, timeout=30.0)
            try:
                connection.execute("PRAGMA synchronous = EXTRA")  # the folder's entry of the journal, too
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            finally:
                connection.close()
        except sqlite3.OperationalError as error:
            raise InvalidInputError(
                f"the privacy ledger cannot be written: {error}",
                hint="check the disk of the state folder and its free space; what was charged is kept",
            ) from error
        except sqlite3.Error as error:
            raise _damaged(str(error)) from error


def read_entries(path: Path) -> tuple[LedgerEntry, ...]:
    """Every charge of a ledger that another process writes; the file is opened to read only.

    Raises:
        IntegrityError: as :class:`PrivacyLedger`.
        InvalidInputError: there is no such file, or its writer is at work.
    """
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)
        ) as connection:
            return _read(connection)
    except sqlite3.OperationalError as error:
        raise InvalidInputError(
            f"the privacy ledger cannot be read: {error}", hint="try again; else check the file"
        ) from error
    except sqlite3.Error as error:
        raise _damaged(str(error)) from error


def _read(connection: sqlite3.Connection) -> tuple[LedgerEntry, ...]:
    marks = [
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    ]
    if marks != [_APPLICATION_ID, _FORMAT]:
        raise _damaged("it is not a privacy ledger of this release")
    entries: list[LedgerEntry] = []
    before = ""
    for number, (sequence, digest, *row) in enumerate(connection.execute(_SELECT), start=1):
        if sequence != number or digest != _digest(before, number, tuple(row)):
            raise _damaged(f"entry {number} is missing or was changed")
        made_at, run_name, server_round, mechanism, noise_multiplier, sample_rate, num_steps, num_draws = row
        try:
            event = PrivacyEvent(
                run_name=run_name,
                server_round=server_round,
                mechanism=mechanism,
                noise_multiplier=noise_multiplier,
                sample_rate=sample_rate,
                num_steps=num_steps,
                num_draws=num_draws,
            )
        except InvalidInputError as error:
            raise _damaged(f"entry {number} is no event") from error
        entries.append(LedgerEntry(sequence=number, made_at=made_at, event=event, digest=digest))
        before = digest
    return tuple(entries)


def _statements(schema: str) -> Iterator[str]:
    """One at a time: sqlite3's ``executescript`` would commit the transaction first."""
    statement = ""
    for line in schema.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _digest(before: str, number: int, row: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps([before, number, *row]).encode()).hexdigest()


def _damaged(what: str) -> IntegrityError:
    return IntegrityError(
        f"the privacy ledger cannot be used: {what}",
        hint=f"restore {LEDGER_NAME} from a backup; without it nobody knows what was spent",
    )
