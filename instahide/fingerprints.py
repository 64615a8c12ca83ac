"""Knowing an image again without keeping it: keyed hashes of pixels.

Each image becomes BLAKE2b-256 of its shape and its pixels in (C, H, W) order, under a secret
key (the ledger's salt). Without the key a fingerprint cannot be tested against a guessed
picture. The same picture resized, cropped or re-windowed has another fingerprint.

Axes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .images import ImageSet
from .mixing_kernel import release_pages

DIGEST_BYTES = 32
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Of N images: a digest of each, (N, 32) uint8, and one of the whole set in its order.

    Useless without the key, and kept inside the site all the same.
    """

    digests: NDArray[np.uint8] = field(repr=False)
    commitment: str

    def __len__(self) -> int:
        return len(self.digests)

    def __iter__(self) -> Iterator[bytes]:
        raw = self.digests.tobytes()
        return (raw[i : i + DIGEST_BYTES] for i in range(0, len(raw), DIGEST_BYTES))

    def first_copies(self, allowed: int) -> NDArray[np.bool_]:
        """(N,) true where a row is among the first ``allowed`` rows that show the same image."""
        whole = np.ascontiguousarray(self.digests).view(f"V{DIGEST_BYTES}")[:, 0]
        order = np.argsort(whole, kind="stable")
        starts_group = np.append(True, whole[order][1:] != whole[order][:-1])[: len(order)]
        starts = np.flatnonzero(starts_group)
        place = np.arange(len(order)) - starts[np.cumsum(starts_group) - 1]
        kept = np.empty(len(order), bool)
        kept[order] = place < allowed
        return kept


def fingerprint(images: ImageSet, key: bytes) -> Fingerprints:
    """Fingerprints of ``images`` under ``key``; reads every pixel once, a chunk at a time."""
    header = struct.pack(">3I", *images.image_shape)
    keyed = hashlib.blake2b(header, key=key, digest_size=DIGEST_BYTES, person=b"instahide-image")
    digests = np.empty((len(images), DIGEST_BYTES), np.uint8)
    step = max(1, _CHUNK_BYTES // int(np.prod(images.image_shape)))
    for start in range(0, len(images), step):
        for row, image in enumerate(np.ascontiguousarray(images.images[start : start + step]), start):
            hasher = keyed.copy()
            hasher.update(image.data)
            digests[row] = np.frombuffer(hasher.digest(), np.uint8)
        release_pages(images.images)
    whole = hashlib.blake2b(digests.tobytes(), key=key, digest_size=DIGEST_BYTES, person=b"instahide-set")
    return Fingerprints(digests, whole.hexdigest())
