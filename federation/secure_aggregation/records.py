"""Strict records: what may stand in a message, checked before anything is computed on it.

A record is a frozen dataclass whose fields each carry a rule. ``to_mapping`` gives plain whole
numbers, texts, byte strings and lists of byte strings under kebab-case keys; ``from_mapping``
refuses everything else: an unknown or missing key, another type, a length or value out of range.
``to_bytes`` and ``from_bytes`` write the same mapping as one byte string, for any transport:

    "IHS1"  then for each key in alphabetical order:
    key length u8 | key | kind u8 | value        kind  i  8 bytes
                                                       s  length u32 | UTF-8
                                                       b  length u64 | bytes
                                                       l  count u32 | (length u32 | bytes) ...

All lengths are big-endian and held against what is left before anything is taken. Nothing is
evaluated or unpickled; the same record has one encoding only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final, Self

from instahide.errors import InvalidInputError

MAGIC: Final = b"IHS1"
MAX_COPIED_BYTES: Final = 1 << 20
_HINT: Final = "both ends need the same release of instahide-fl and the same roster"

Octets = bytes | bytearray | memoryview
"""Bytes of a large field may be a view: a vector is not copied on its way into a message."""
Check = Callable[[Any], bool]


def whole(smallest: int, largest: int) -> Any:
    """A field that is a whole number in a range."""
    return _ruled(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and smallest <= value <= largest,
        f"a whole number from {smallest} to {largest}",
    )


def text(longest: int) -> Any:
    """A field that is printable text, not empty."""
    return _ruled(
        lambda value: isinstance(value, str) and 0 < len(value) <= longest and value.isprintable(),
        f"printable text of up to {longest} characters",
    )


def octets(smallest: int, largest: int | None = None, *, shown: bool = True) -> Any:
    """A field that is a byte string of a fixed length, or within a range of lengths."""
    most = smallest if largest is None else largest
    return _ruled(
        lambda value: isinstance(value, bytes) and smallest <= len(value) <= most,
        f"{smallest} bytes" if most == smallest else f"{smallest} to {most} bytes",
        shown=shown,
    )


def bulk(smallest: int, largest: int) -> Any:
    """A field that is a long byte string, or a view of one: it is not copied on its way."""
    return _ruled(
        lambda value: isinstance(value, Octets) and smallest <= memoryview(value).nbytes <= largest,
        f"{smallest} to {largest} bytes",
        shown=False,
    )


def octet_list(most: int, largest: int) -> Any:
    """A field that is a list of byte strings."""
    return _ruled(
        lambda value: (
            isinstance(value, tuple)
            and len(value) <= most
            and all(isinstance(item, bytes) and len(item) <= largest for item in value)
        ),
        f"a tuple of up to {most} byte strings of up to {largest} bytes",
        shown=False,
    )


def _ruled(check: Check, meaning: str, *, shown: bool = True) -> Any:
    return field(metadata={"check": check, "meaning": meaning}, repr=shown)


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of all messages; subclasses declare fields with the functions above.

    Raises InvalidInputError at construction, naming record and field, for a value that breaks its rule.
    """

    kind: ClassVar[str] = "record"

    def __post_init__(self) -> None:
        for item in fields(self):
            if not item.metadata["check"](getattr(self, item.name)):
                raise InvalidInputError(
                    f"{_key(item.name)} in a {self.kind} is not {item.metadata['meaning']}", hint=_HINT
                )

    def to_mapping(self) -> dict[str, Any]:
        """Plain values under kebab-case keys; tuples become lists."""
        return {
            _key(item.name): list(value) if isinstance(value, tuple) else value
            for item in fields(self)
            for value in [getattr(self, item.name)]
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """The record in ``mapping``; InvalidInputError for any key or value that does not belong."""
        names = {_key(item.name): item.name for item in fields(cls)}
        if set(mapping) != set(names):
            odd = sorted(map(str, set(mapping) ^ set(names)))[0]
            raise InvalidInputError(
                f"a {cls.kind} {'lacks' if odd in names else 'holds'} the key {odd!r:.100}", hint=_HINT
            )
        return cls(
            **{
                names[key]: tuple(value) if isinstance(value, list) else value
                for key, value in mapping.items()
            }
        )

    def to_bytes(self) -> bytes:
        """The record as one byte string."""
        mapping = self.to_mapping()
        parts: list[Octets] = [MAGIC]
        for key in sorted(mapping):
            parts += [bytes([len(key)]), key.encode("ascii"), *_written(mapping[key])]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: Octets) -> Self:
        """The inverse of :meth:`to_bytes`; large fields are views into ``data``, not copies."""
        reader = _Reader(memoryview(data).cast("B"))
        if bytes(reader.take(len(MAGIC))) != MAGIC:
            raise InvalidInputError("the message does not begin as a record does", hint=_HINT)
        mapping: dict[str, Any] = {}
        last = ""
        while reader.left:
            key = reader.text(reader.number(1))
            if key <= last:
                raise InvalidInputError("the keys of a message are not in order", hint=_HINT)
            mapping[key], last = reader.value(), key
        return cls.from_mapping(mapping)


def _key(name: str) -> str:
    return name.replace("_", "-")


def _written(value: Any) -> list[Octets]:
    if isinstance(value, int):
        return [b"i", value.to_bytes(8, "big")]
    if isinstance(value, str):
        encoded = value.encode()
        return [b"s", len(encoded).to_bytes(4, "big"), encoded]
    if isinstance(value, Octets):
        return [b"b", memoryview(value).nbytes.to_bytes(8, "big"), value]
    parts: list[Octets] = [b"l", len(value).to_bytes(4, "big")]
    for item in value:
        parts += [len(item).to_bytes(4, "big"), item]
    return parts


class _Reader:
    """Takes pieces off the front of a byte string; a length beyond its end is refused."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    @property
    def left(self) -> int:
        return len(self._data)

    def take(self, count: int) -> memoryview:
        if count > len(self._data):
            raise InvalidInputError("a message was cut short", hint=_HINT)
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def text(self, size: int) -> str:
        try:
            return str(self.take(size), "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInputError("a text in a message is not UTF-8", hint=_HINT) from error

    def value(self) -> Any:
        kind = bytes(self.take(1))
        if kind == b"i":
            return self.number(8)
        if kind == b"s":
            return self.text(self.number(4))
        if kind == b"b":
            return _settled(self.take(self.number(8)))
        if kind == b"l":
            count = self.number(4)  # each item takes four bytes at least: a count that lies ends at once
            return tuple(bytes(self.take(self.number(4))) for _ in range(count))
        raise InvalidInputError(f"a message holds a value of unknown kind {kind!r}", hint=_HINT)


def _settled(view: memoryview) -> Octets:
    """Small fields as bytes of their own; a large one stays a view."""
    return view if len(view) > MAX_COPIED_BYTES else bytes(view)
