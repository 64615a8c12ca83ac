"""One way to write down what is signed, hashed or bound into a key, so that no two things look alike.

    statement(label, f_1, f_2, ...) = "instahide-fl/secure-aggregation/1/" label 0x00 |f_1| f_1 |f_2| f_2 ...

Texts are UTF-8, whole numbers 8 bytes, every length 4 bytes, all big-endian. With a fixed list of
fields for each label the encoding is injective: a signature on an advert can never be read as one
on a set of survivors, and a key derived for one purpose never equals one for another.
"""

from __future__ import annotations

import hashlib
from typing import Final

PROTOCOL_VERSION: Final = 1
_DOMAIN: Final = f"instahide-fl/secure-aggregation/{PROTOCOL_VERSION}/".encode()

Field = bytes | str | int


def statement(label: str, *fields: Field) -> bytes:
    """The canonical bytes of ``label`` with its fields, in order."""
    parts = [_DOMAIN, label.encode(), b"\0"]
    for field in fields:
        octets = _octets(field)
        parts += [len(octets).to_bytes(4, "big"), octets]
    return b"".join(parts)


def statement_hash(label: str, *fields: Field) -> bytes:
    """SHA-256 of :func:`statement`, 32 bytes."""
    return hashlib.sha256(statement(label, *fields)).digest()


def _octets(field: Field) -> bytes:
    if isinstance(field, int):
        return field.to_bytes(8, "big")
    return field.encode() if isinstance(field, str) else bytes(field)
