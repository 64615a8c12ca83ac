"""The audit log: an append-only file in which no line can be changed without all later ones.

Each line is one JSON record

    {"sequence": n, "time": UTC, "event": ..., "fields": {...}, "previous": H(n-1), "hash": H(n)}
    H(n) = SHA-256 over the canonical JSON of the record without "hash",   H(0) = 64 zeros

(Schneier & Kelsey 1999 use such chains for logs on untrusted machines.) A chain alone does not
show that its *tail* is missing, nor that all of it was written anew. Therefore heads are
exchanged: a :class:`SignedHead` is (log, n, H(n)) under the owner's identity key, where the log's
name is H(1). Coordinator and sites send theirs along with every round and record each other's;
``instahide log verify --against`` compares.

Appending takes an exclusive lock, since the worker and the commands write to one file, and ends
with an fsync: a record that was returned from ``append`` survives a power cut. A line that a
crash left half written is never removed: the next record says "torn" and gives its length and
SHA-256. Time never runs backwards in a log: behind a clock that was set back, records repeat the
last time and keep the clock's own as ``clock``.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from instahide.atomic import first_error_wins
from instahide.errors import IntegrityError, InvalidInputError

from .identity import Identity, signature_is_good

FIRST_PREVIOUS: Final = "0" * 64
MAX_LINE_BYTES: Final = 64 * 1024
CREATED, TORN = "log-created", "torn"
HEAD_PURPOSE: Final = "audit log head 1"
_KEYS: Final = {"sequence", "time", "event", "fields", "previous", "hash"}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_TAIL_BYTES: Final = 4 * MAX_LINE_BYTES


def canonical_json(value: Any) -> bytes:
    """JSON in one form only: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of a log."""

    sequence: int
    time: str
    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    previous: str
    hash: str

    @classmethod
    def build(cls, sequence: int, time: str, event: str, fields: Mapping[str, Any], previous: str) -> Self:
        """A record with its hash."""
        body = _body(sequence, time, event, fields, previous)
        digest = hashlib.sha256(canonical_json(body)).hexdigest()
        return cls(
            sequence=sequence, time=time, event=event, fields=dict(fields), previous=previous, hash=digest
        )

    def to_line(self) -> bytes:
        """The record as it stands in the file, with its line end."""
        body = _body(self.sequence, self.time, self.event, self.fields, self.previous)
        return canonical_json(body | {"hash": self.hash}) + b"\n"

    @property
    def hash_is_right(self) -> bool:
        """Whether ``hash`` is that of the other entries."""
        return self.build(self.sequence, self.time, self.event, self.fields, self.previous).hash == self.hash


def _body(sequence: int, time: str, event: str, fields: Mapping[str, Any], previous: str) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "time": time,
        "event": event,
        "fields": dict(fields),
        "previous": previous,
    }


def parse_line(line: bytes) -> Record | None:
    """The record in a line (without its end); None for what has not the form of one."""
    try:
        table: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(table, dict) or set(table) != _KEYS or not isinstance(table["fields"], dict):
        return None
    texts = all(isinstance(table[key], str) for key in ("time", "event", "previous", "hash"))
    if not texts or type(table["sequence"]) is not int or not _TIME.fullmatch(table["time"]):
        return None
    try:
        canonical_json(table)
    except ValueError:  # NaN, which json.loads lets through
        return None
    return Record(**table)


@dataclass(frozen=True, kw_only=True)
class SignedHead:
    """Where a log stood: its name (the hash of its first record), a sequence number and hash."""

    log: str
    sequence: int
    hash: str
    signature: bytes

    @classmethod
    def of(cls, log: str, record: Record, identity: Identity) -> Self:
        """The head of the log called ``log`` at ``record``."""
        message = _head_message(log, record.sequence, record.hash)
        signature = identity.sign(message, purpose=HEAD_PURPOSE)
        return cls(log=log, sequence=record.sequence, hash=record.hash, signature=signature)

    def is_by(self, public_key: str) -> bool:
        """Whether the key in this OpenSSH line signed it."""
        message = _head_message(self.log, self.sequence, self.hash)
        return signature_is_good(public_key, self.signature, message, purpose=HEAD_PURPOSE)

    def to_text(self) -> str:
        """``LOG:SEQUENCE:HASH:SIGNATURE``, as it travels and is recorded."""
        return f"{self.log}:{self.sequence}:{self.hash}:{base64.b64encode(self.signature).decode('ascii')}"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Inverse of ``to_text``. Raises InvalidInputError for anything else."""
        match = re.fullmatch(HEAD_PATTERN, text) if isinstance(text, str) else None
        try:
            log, sequence, digest, signature = text.split(":") if match else ("", "", "", "")
            return cls(
                log=log,
                sequence=int(sequence),
                hash=digest,
                signature=base64.b64decode(signature, validate=True),
            )
        except (ValueError, binascii.Error) as error:
            raise InvalidInputError(
                "this is no head of an audit log", hint="install the same release everywhere"
            ) from error


HEAD_PATTERN: Final = r"[0-9a-f]{64}:[1-9][0-9]{0,14}:[0-9a-f]{64}:[A-Za-z0-9+/]{86}=="


def _head_message(log: str, sequence: int, digest: str) -> bytes:
    return canonical_json({"log": log, "sequence": sequence, "hash": digest})


class AuditLog:
    """A log that this process appends to; the file is made with its first record if it is not there.

    Args:
        path: the file; its folder exists.
        identity: the key of the log's owner; signs heads.
        role: "site" or "coordinator"; in the first record, with ``name`` and the public key.
        now: the clock.

    Raises:
        IntegrityError: the file's end is no log's, or its first record is not this owner's.
        OSError: it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        *,
        role: str,
        name: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._path, self._identity, self._now = path, identity, now
        self._seen: Record | None = None
        with self._locked(create=True) as descriptor:
            if _was_never_begun(descriptor):
                os.ftruncate(descriptor, 0)
                facts = {"role": role, "name": name, "public-key": identity.public_line}
                self._write(descriptor, Record.build(1, self._stamp(), CREATED, facts, FIRST_PREVIOUS))
            first = parse_line(os.pread(descriptor, MAX_LINE_BYTES, 0).split(b"\n")[0])
        if first is None or first.event != CREATED or not first.hash_is_right:
            raise IntegrityError(
                "the audit log does not begin as one", hint="`instahide log verify` tells more"
            )
        if first.fields.get("public-key") != identity.public_line:
            raise IntegrityError(
                "the audit log was begun under another identity key",
                hint="restore the key it belongs to, or archive the log and tell the other side",
            )
        self.log_id = first.hash

    def append(self, event: str, **fields: Any) -> Record:
        """Append one record, on the disk when this returns; keys of ``fields`` become kebab-case.

        Raises:
            IntegrityError: the file's end is not as this process left it, or no record.
            InvalidInputError: the fields are not plain JSON, or too long.
            OSError: it could not be written; the next record will say "torn".
        """
        facts = {key.replace("_", "-"): value for key, value in fields.items()}
        with self._locked() as descriptor:
            last, fragments, open_line = read_tail(descriptor)
            self._check_not_shortened(last)
            if fragments:
                if open_line:
                    _write_all(descriptor, b"\n")
                described = [describe_fragment(fragment) for fragment in fragments]
                last = self._next(descriptor, last, TORN, {"fragments": described})
            return self._next(descriptor, last, event, facts)

    def sign(self, record: Record) -> SignedHead:
        """The signed head of this log at ``record``."""
        return SignedHead.of(self.log_id, record, self._identity)

    def _next(self, descriptor: int, last: Record, event: str, fields: Mapping[str, Any]) -> Record:
        stamp = self._stamp()
        if stamp < last.time:
            fields, stamp = {**fields, "clock": stamp}, last.time
        try:
            record = Record.build(last.sequence + 1, stamp, event, fields, last.hash)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"a record of {event!r} is not plain JSON", hint=str(error)) from error
        return self._write(descriptor, record)

    def _write(self, descriptor: int, record: Record) -> Record:
        line = record.to_line()
        if len(line) > MAX_LINE_BYTES:
            raise InvalidInputError(f"a record of {len(line)} bytes", hint=f"at most {MAX_LINE_BYTES}")
        _write_all(descriptor, line)
        os.fsync(descriptor)
        self._seen = record
        return record

    def _check_not_shortened(self, last: Record) -> None:
        seen = self._seen
        shorter = seen is not None and last.sequence < seen.sequence
        replaced = seen is not None and last.sequence == seen.sequence and last.hash != seen.hash
        if shorter or replaced:
            raise IntegrityError("the audit log was shortened or replaced", hint="restore it from a backup")

    def _stamp(self) -> str:
        return self._now().astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

    @contextmanager
    def _locked(self, *, create: bool = False) -> Iterator[int]:
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        descriptor = os.open(self._path, flags, 0o600)
        with first_error_wins(lambda: os.close(descriptor)):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor


def _was_never_begun(descriptor: int) -> bool:
    """Whether the first record never became whole: its writer was killed, or the disk was full.

    Nobody has been told of such a record, so the log may begin anew.
    """
    return os.fstat(descriptor).st_size < MAX_LINE_BYTES and b"\n" not in os.pread(
        descriptor, MAX_LINE_BYTES, 0
    )


def read_tail(descriptor: int) -> tuple[Record, list[bytes], bool]:
    """The last whole record, the torn lines after it, and whether the last of these has no end.

    Raises IntegrityError where a line has the form of a record but not its hash, or none is found.
    """
    size = os.fstat(descriptor).st_size
    start = max(0, size - _TAIL_BYTES)
    lines = os.pread(descriptor, size - start, start).split(b"\n")
    fragments = [lines.pop()] if lines[-1] else []
    open_line = bool(fragments)
    lines = [line for line in lines if line]
    for line in reversed(lines):
        record = parse_line(line)
        if record is not None:
            if not record.hash_is_right:
                raise IntegrityError(
                    "the audit log's last record was edited", hint="`instahide log verify` tells more"
                )
            return record, fragments, open_line
        fragments.insert(0, line)
    raise IntegrityError("the audit log's end holds no record", hint="`instahide log verify` tells more")


def describe_fragment(fragment: bytes) -> dict[str, Any]:
    """What a "torn" record says about a half-written line."""
    return {"bytes": len(fragment), "sha256": hashlib.sha256(fragment).hexdigest()}


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
