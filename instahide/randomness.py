"""The only source of secrets: operating-system entropy, stretched by a stream cipher.

InstaHide's published code draws sign masks, partners and coefficients from the framework's
generators. They are not made for secrets: torch's CPU generator has 32 bits of seed entropy
whatever the seed, and 20,550 observed mask bits give its whole state in about a minute. So
nothing here can be seeded, and no generator of torch, numpy or ``random`` is touched.

::

    os.urandom(32) ─ root key, one per Encoder, never leaves this object
        │  HKDF-SHA256(root, salt = os.urandom(32), info = purpose ‖ call number)
        ├─ "partners"      ─ ChaCha20 ─ permutations, public draws
        ├─ "coefficients"  ─ ChaCha20 ─ uniforms of 53 bits
        ├─ "signs"         ─ ChaCha20 ─ one bit a pixel and channel
        ├─ "dither"        ─ ChaCha20 ─ one byte a pixel and channel
        ├─ "noise"         ─ ChaCha20 ─ noise of the modes with a guarantee (integer_noise.py)
        ├─ "sampling"      ─ ChaCha20 ─ which images a private training step sees
        └─ "aggregation"   ─ ChaCha20 ─ keys, seeds and shares of secure aggregation (federation)

Every use of every epoch has its own key. Inside a stream, each read has its own 96-bit nonce
(the read's number) and starts at block 0; records inside a read start at their own 64-byte
block. So no (key, nonce, block) is ever used for two things, and a read is one cipher call
however many records it serves. ChaCha20's 32-bit block counter is never allowed to wrap.

After ``os.fork`` a child would hold its parent's streams: a :class:`Randomness` draws a new
root in the child, and a stream opened before the fork refuses to go on.
"""

from __future__ import annotations

import os
from typing import Any, Final, NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from .errors import RefusedError

BLOCK_BYTES: Final = 64
"""A ChaCha20 block; every record of a batch starts on one."""
MAX_BLOCKS_PER_READ: Final = 2**32
MAX_READS: Final = 2**64
PURPOSES: Final = ("partners", "coefficients", "signs", "dither", "noise", "sampling", "aggregation")
_KEY_BYTES: Final = 32
_ZEROS: Final = bytes(1 << 20)


class _Secret:
    """No pickle, no copy, no contents in a repr."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: contents withheld>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds secrets and cannot be pickled or copied")


class Keystream(_Secret):
    """Draws for one use of one epoch, from one ChaCha20 key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._reads = 0
        self._pid = os.getpid()

    def read(self, num_bytes: int) -> NDArray[np.uint8]:
        """``num_bytes`` fresh key-stream bytes; one nonce, one cipher call a megabyte.

        Raises:
            RefusedError: in a forked child, or beyond what one key may serve.
        """
        if os.getpid() != self._pid:
            raise RefusedError(
                "a stream of secrets opened before os.fork() was used in the child",
                hint="start the epoch in the process that consumes it; the Encoder itself may be inherited",
            )
        if num_bytes > MAX_BLOCKS_PER_READ * BLOCK_BYTES or self._reads >= MAX_READS:
            raise RefusedError(
                f"{num_bytes:,} bytes asked of one nonce, read number {self._reads}",
                hint="encode in smaller batches",
            )
        # The first 4 bytes are the block counter, which starts at 0; the other 12 are the nonce.
        nonce = bytes(4) + self._reads.to_bytes(12, "little")
        self._reads += 1
        out = np.empty(num_bytes, dtype=np.uint8)
        cipher = Cipher(algorithms.ChaCha20(self._key, nonce), mode=None).encryptor()
        view = out.data
        for start in range(0, num_bytes, len(_ZEROS)):
            size = min(len(_ZEROS), num_bytes - start)
            cipher.update_into(memoryview(_ZEROS)[:size], view[start : start + size])
        return out

    def read_records(self, count: int, bytes_per_record: int) -> NDArray[np.uint8]:
        """(count, S) bytes, S the ``bytes_per_record`` in whole blocks: no two records share a block."""
        stride = -(-bytes_per_record // BLOCK_BYTES) * BLOCK_BYTES
        return self.read(count * stride).reshape(count, stride)

    def words(self, count: int) -> NDArray[np.uint64]:
        """``count`` uniform 64-bit integers."""
        return self.read(8 * count).view("<u8").astype(np.uint64, copy=False)

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """``count`` uniforms strictly inside (0, 1): the mid-points (2j + 1) / 2**53, j uniform of 52 bits.

        They use all 53 bits of a float64, lie symmetric about 1/2 and are never 0 or 1, so a logarithm
        or an inverse erf of them is finite.
        """
        odd = (self.words(count) >> np.uint64(12)) * np.uint64(2) + np.uint64(1)
        return odd.astype(np.float64) * 2.0**-53

    def integers(self, upper: int, count: int) -> NDArray[np.int64]:
        """``count`` integers uniform on 0..upper-1, exactly: words beyond the last multiple are rejected."""
        if not 1 <= upper <= 2**63:
            raise RefusedError(f"integers below {upper} cannot be drawn", hint="use 1..2**63")
        limit = 2**64 - 2**64 % upper
        words = self.words(count)
        if limit < 2**64:
            rejected = np.flatnonzero(words >= np.uint64(limit))
            while rejected.size:
                words[rejected] = self.words(rejected.size)
                rejected = rejected[words[rejected] >= np.uint64(limit)]
        return (words % np.uint64(upper)).astype(np.int64)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """A uniform permutation of 0..count-1: the order of 64-bit keys, drawn again on a tie."""
        while True:
            keys = self.words(count)
            order = np.argsort(keys, kind="stable")
            ordered = keys[order]
            if not (ordered[1:] == ordered[:-1]).any():
                return order.astype(np.int64, copy=False)


class Randomness(_Secret):
    """A 256-bit root from the operating system, and the streams derived from it."""

    def __init__(self) -> None:
        self._root = os.urandom(_KEY_BYTES)
        self._pid = os.getpid()
        self._calls = 0

    def stream(self, purpose: str) -> Keystream:
        """A stream under a key of its own; two calls never share one, whatever the purpose."""
        if purpose not in PURPOSES:
            raise RefusedError(f"no secrets are drawn for {purpose!r}", hint=f"use one of {PURPOSES}")
        if os.getpid() != self._pid:
            self._root, self._pid = os.urandom(_KEY_BYTES), os.getpid()
        self._calls += 1
        # The salt makes keys fresh even if this very memory is brought back, as by a restored snapshot.
        return Keystream(_derive(self._root, self._salt(), purpose, self._calls))

    def _salt(self) -> bytes:
        return os.urandom(_KEY_BYTES)


class TestOnlyRandomness(Randomness):
    """Seeded, hence no secret at all: works under pytest only, for tests that compare two paths."""

    __test__ = False  # pytest must not collect it

    def __init__(self, seed: int) -> None:
        if "PYTEST_CURRENT_TEST" not in os.environ:
            raise RefusedError(
                "seeded randomness was asked for outside a test",
                hint="secrets come from the operating system; there is no seed to set",
            )
        super().__init__()
        self._root = seed.to_bytes(_KEY_BYTES, "little")

    def _salt(self) -> bytes:
        return bytes(_KEY_BYTES)


def _derive(root: bytes, salt: bytes, purpose: str, call: int) -> bytes:
    info = b"instahide/v1/" + purpose.encode() + b"/" + call.to_bytes(8, "little")
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=salt, info=info).derive(root)
