"""Masks: ChaCha20 key streams added to a vector in Z / 2^b, and taken away again.

    y_i = x_i + PRG(b_i) + Σ_{j > i} PRG(k_ij) − Σ_{j < i} PRG(k_ij)

PRG(seed) is the key stream under the seed's stream key, with one nonce for each part of a report,
read as little-endian words of b bits: uniform on the whole ring, the top residue included. Streams
go through one cache-sized buffer, all of them over one piece of the vector before the next piece,
so a vector passes through memory once however many masks it gets.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from instahide.errors import InvalidInputError

from .records import Octets

VECTOR_STREAM: Final = 0
CHANNEL_STREAM: Final = 1
CHUNK_BYTES: Final = 1 << 18  # key stream, buffer and target together stay in a core's second-level cache
MAX_STREAM_BYTES: Final = 64 * 2**32  # the block counter has 32 bits and must not wrap
_ZEROS: Final = memoryview(bytes(CHUNK_BYTES))

RingVector = NDArray[Any]
"""(d,) unsigned little-endian words of 16, 32 or 64 bits; sums wrap modulo 2^b."""

Mask = tuple[bytes, int]
"""A stream key and its sign, +1 or -1."""


def ring_dtype(ring_bits: int) -> np.dtype[Any]:
    """Little-endian unsigned words of ``ring_bits``."""
    return np.dtype(f"<u{ring_bits // 8}")


def add_masks(target: RingVector, masks: Sequence[Mask], *, stream: int) -> None:
    """Add (sign +1) or subtract (-1) each mask's stream number ``stream``, in place.

    ``target`` is a contiguous one-dimensional ring vector. Raises InvalidInputError otherwise.
    """
    if target.ndim != 1 or not target.flags.c_contiguous or target.dtype.kind != "u":
        raise InvalidInputError("masks are added to contiguous unsigned vectors", hint="np.ascontiguousarray")
    if target.nbytes > MAX_STREAM_BYTES:
        raise InvalidInputError("the vector is longer than one key stream", hint="split the model")
    streams = [(_key_stream(key, stream), np.add if sign > 0 else np.subtract) for key, sign in masks]
    buffer = np.empty(min(CHUNK_BYTES, target.nbytes), dtype=np.uint8)
    step = CHUNK_BYTES // target.itemsize
    for start in range(0, target.size, step):
        piece = target[start : start + step]
        octets = buffer[: piece.nbytes]
        words = octets.view(target.dtype)
        for cipher, combine in streams:
            cipher.update_into(_ZEROS[: piece.nbytes], octets.data)
            combine(piece, words, out=piece)


def _key_stream(key: bytes, stream: int) -> Any:
    # The first 4 bytes are the block counter, from 0; the other 12 are the nonce (RFC 8439).
    nonce = bytes(4) + stream.to_bytes(12, "little")
    return Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor()


def wire_bytes(vector: RingVector) -> memoryview:
    """The bytes of a ring vector as they travel: little-endian words, no header, no copy where possible."""
    little = vector.astype(vector.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).view(np.uint8).data


def from_wire(octets: Octets, ring_bits: int) -> RingVector:
    """The ring vector in ``octets``, read-only if they are; InvalidInputError for a broken length."""
    dtype = ring_dtype(ring_bits)
    size = memoryview(octets).nbytes
    if size % dtype.itemsize:
        raise InvalidInputError(
            f"{size} bytes are no vector of {ring_bits}-bit words", hint="the message was cut short"
        )
    words = np.frombuffer(octets, dtype=dtype)
    return words if sys.byteorder == "little" else words.astype(dtype.newbyteorder("="))
