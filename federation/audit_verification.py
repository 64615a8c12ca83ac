"""Checking audit logs: alone, and one against the other's memory of it.

Alone (``read_log``): every line is a record or a torn line that a later record owns up to; the
sequence has no gap, each record holds the hash of the one before and its own, time does not run
backwards. That finds any edit that did not rewrite all that follows.

Against the other side's log (``compare_logs``): each log holds signed heads of the other, one a
round. A head beyond the other log's end means that its tail is missing; another hash at that
sequence number, that it was written anew; a wrong signature, that the head is not the owner's.
Where a head belongs to an update, both logs must name the same SHA-256 of it.

Not found: records that both sides left out, and the tail after the last exchange.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from instahide.errors import InvalidInputError

from .audit_log import CREATED, FIRST_PREVIOUS, TORN, Record, SignedHead, describe_fragment, parse_line
from .identity import identity_fingerprint

HEAD_KEY: Final = "audit-head"
UPDATE_KEY: Final = "update-sha256"
MAX_PROBLEMS: Final = 50


@dataclass(frozen=True, kw_only=True)
class ReadLog:
    """A log as it was read: its records, who began it, and what is wrong with it (in words)."""

    path: Path
    records: tuple[Record, ...]
    torn_lines: int
    problems: tuple[str, ...]

    @property
    def log_id(self) -> str:
        return self.records[0].hash if self.records else ""

    @property
    def owner(self) -> dict[str, Any]:
        """``role``, ``name`` and ``public-key`` of the first record."""
        return dict(self.records[0].fields) if self.records else {}

    @property
    def public_key(self) -> str:
        return str(self.owner.get("public-key", ""))

    def heads(self) -> Iterator[tuple[Record, SignedHead]]:
        """The other side's heads that this log holds. Raises InvalidInputError for a damaged one."""
        for record in self.records:
            if text := record.fields.get(HEAD_KEY):
                yield record, SignedHead.from_text(str(text))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two logs agree; ``heads`` is the number of signed heads that were looked up.

    ``elsewhere`` counts heads about logs that the owner kept under other identity keys, which the
    holder recorded when it admitted them: they are in the log that was put aside then, or begun since.
    """

    heads: int
    problems: tuple[str, ...]
    elsewhere: int = 0


@dataclass
class _Reading:
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    torn_lines: int = 0
    unexplained: list[tuple[int, bytes]] = field(default_factory=list)

    def complain(self, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)


def read_log(path: Path) -> ReadLog:
    """Read a log and check it from its first line to its last.

    Raises InvalidInputError if the file cannot be read; everything else is in ``problems``.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}", hint="check the path") from error
    reading = _Reading()
    lines = data.split(b"\n")
    open_end = lines.pop()
    for number, line in enumerate(lines, 1):
        record = parse_line(line)
        if record is None:
            reading.unexplained.append((number, line))
        else:
            if record.to_line() != line + b"\n":
                reading.complain(f"line {number} is not in the one form a record has")
            _take(reading, number, record)
    _complain_of_unexplained(reading)
    if open_end:
        reading.complain(f"the last line is half written ({len(open_end)} bytes), and no record says so yet")
    if not reading.records:
        reading.complain("there is no record in it")
    return ReadLog(
        path=path,
        records=tuple(reading.records),
        torn_lines=reading.torn_lines,
        problems=tuple(reading.problems),
    )


def _take(reading: _Reading, number: int, record: Record) -> None:
    if record.event == TORN:
        _explain(reading, number, record)
    _complain_of_unexplained(reading)
    last = reading.records[-1] if reading.records else None
    if not record.hash_is_right:
        reading.complain(f"line {number} was edited: its hash is not that of its text")
    if record.sequence != (last.sequence if last else 0) + 1:
        before = f"after {last.sequence}" if last else "at the beginning"
        reading.complain(f"line {number} has the sequence number {record.sequence} {before}")
    if record.previous != (last.hash if last else FIRST_PREVIOUS):
        reading.complain(f"line {number} does not follow on the line before it")
    if last and record.time < last.time:
        reading.complain(f"line {number} is dated before the line before it")
    if (record.event == CREATED) != (last is None):
        reading.complain(f"line {number} is {'a second beginning' if last else 'no beginning of a log'}")
    reading.records.append(record)


def _explain(reading: _Reading, number: int, record: Record) -> None:
    """A "torn" record owns up to the half-written lines just before it, by length and hash.

    A line that was whole but for its end has the form of a record; it too may be among them.
    """
    told = record.fields.get("fragments")
    found = [describe_fragment(line) for _, line in reading.unexplained]
    if isinstance(told, list) and len(told) == len(found) + 1 and reading.records:
        whole = reading.records[-1].to_line()[:-1]
        if told[0] == describe_fragment(whole):
            reading.records.pop()
            found.insert(0, told[0])
    if told == found:
        reading.torn_lines += len(found)
        reading.unexplained.clear()
    else:
        reading.complain(f"line {number} speaks of torn lines that are not the ones before it")


def _complain_of_unexplained(reading: _Reading) -> None:
    for number, line in reading.unexplained:
        reading.complain(f"line {number} ({len(line)} bytes) is no record")
    reading.unexplained.clear()


def compare_logs(one: ReadLog, other: ReadLog) -> Comparison:
    """Look every head that one log holds of the other up in that other log, both ways."""
    problems: list[str] = []
    found = [_look_up(holder, owner, problems) for holder, owner in ((one, other), (other, one))]
    heads, elsewhere = (sum(column) for column in zip(*found, strict=True))
    if not heads:
        problems.append("neither log holds a head of the other: they say nothing about each other")
    return Comparison(heads=heads, problems=tuple(problems[:MAX_PROBLEMS]), elsewhere=elsewhere)


def _look_up(holder: ReadLog, owner: ReadLog, problems: list[str]) -> tuple[int, int]:
    """How many heads of ``owner`` were looked up, and how many are about another log of its owner."""
    count, elsewhere = 0, 0
    title = f"the log of {owner.owner.get('name', 'the other side')}"
    admitted = _identities_admitted(holder, str(owner.owner.get("name")))
    own = _fingerprint(owner.public_key)
    was_admitted = own in {identity for _, identity in admitted}
    try:
        for record, head in holder.heads():
            if _is_about(record, head, owner):
                known = [identity for sequence, identity in admitted if sequence < record.sequence]
                if was_admitted and head.log != owner.log_id and known and known[-1] != own:
                    elsewhere += 1
                    continue
                count += 1
                problems.extend(f"{title}: {problem}" for problem in _differences(record, head, owner))
    except InvalidInputError as error:
        problems.append(f"{holder.path.name} holds a head that cannot be read: {error.message}")
    return count, elsewhere


def _identities_admitted(holder: ReadLog, name: str) -> list[tuple[int, str]]:
    """At which record a coordinator admitted the site under which identity key, in order."""
    return [
        (record.sequence, str(record.fields.get("identity-key", "")))
        for record in holder.records
        if record.event == "site-admitted" and record.fields.get("site") == name
    ]


def _fingerprint(public_key: str) -> str:
    try:
        return identity_fingerprint(public_key)
    except InvalidInputError:
        return ""


def _is_about(record: Record, head: SignedHead, owner: ReadLog) -> bool:
    """A coordinator's log holds heads of many sites, by name; a site's those of its coordinator."""
    site = record.fields.get("site")
    return head.log == owner.log_id or site is None or site == owner.owner.get("name")


def _differences(record: Record, head: SignedHead, owner: ReadLog) -> Iterator[str]:
    if head.log != owner.log_id:
        yield f"the other side's record {record.sequence} is about another log, begun elsewhere"
        return
    if not owner.public_key or not head.is_by(owner.public_key):
        yield f"the head in the other side's record {record.sequence} is not signed by this log's key"
    if head.sequence > len(owner.records):
        yield (
            f"its tail is missing: it ends at {len(owner.records)}, and the other side holds its signed "
            f"head at {head.sequence}"
        )
        return
    there = owner.records[head.sequence - 1]
    if there.hash != head.hash:
        yield f"it was written anew: record {head.sequence} is not the one that was signed"
    sent, taken = there.fields.get(UPDATE_KEY), record.fields.get(UPDATE_KEY)
    if taken is not None and sent != taken:
        yield f"record {head.sequence} names another update than the other side's record {record.sequence}"
