"""Who is mixed with whom: partner draws without self-mixing and without a repeat in a row.

Axes: N rows, slots 0..k-1; slot 0 is the own image and is not drawn.

The published code takes independent permutations for the partner slots, so about one image an
epoch and slot is mixed with itself, and some rows hold one image twice: encodings of effectively
fewer images. Here every private slot is still a permutation of the data (so each image is a
partner exactly once per slot and epoch, and a release budget can count it), but without a
fixed point and without a partner that another slot of the row already holds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInputError
from .randomness import Keystream

_CYCLIC_BELOW = 4
"""Up to this many times as many images as slots, conflicts are common and the cyclic construction is used."""
_MAX_REPAIR_ROUNDS = 200


def draw_private_partners(stream: Keystream, num_images: int, num_partners: int) -> NDArray[np.int64]:
    """(N, num_partners) partners: columns permute 0..N-1, rows are distinct and without their own index.

    Raises:
        InvalidInputError: fewer images than the slots of one row.
    """
    if num_images < num_partners + 1:
        raise InvalidInputError(
            f"{num_partners + 1} different private images are mixed but there are only {num_images}",
            hint="lower num_mixed or num_private, or add images",
        )
    if num_images < _CYCLIC_BELOW * (num_partners + 1):
        return _cyclic_partners(stream, num_images, num_partners)
    columns = np.empty((num_images, num_partners + 1), dtype=np.int64)
    columns[:, 0] = np.arange(num_images)
    for slot in range(1, num_partners + 1):
        columns[:, slot] = stream.permutation(num_images)
        if not _repair(stream, columns, slot):
            return _cyclic_partners(stream, num_images, num_partners)
    return columns[:, 1:]


def draw_public_sources(stream: Keystream, pool_size: int, count: int, num_slots: int) -> NDArray[np.int64]:
    """(count, num_slots) indices into the pool; uniform over the whole pool, distinct within a row.

    Raises:
        InvalidInputError: a pool smaller than one row needs.
    """
    if pool_size < num_slots:
        raise InvalidInputError(
            f"the public pool has {pool_size} usable images but a row needs {num_slots} different ones",
            hint="give a larger pool; thousands of images are sensible",
        )
    drawn = np.empty((count, num_slots), dtype=np.int64)
    for slot in range(num_slots):
        # The r-th of the images not yet in the row: step over each taken one, smallest first.
        choice = stream.integers(pool_size - slot, count)
        for taken in np.sort(drawn[:, :slot], axis=1).T:
            choice += choice >= taken
        drawn[:, slot] = choice
    return drawn


def _repair(stream: Keystream, columns: NDArray[np.int64], slot: int) -> bool:
    """Swap entries of column ``slot`` at random until no row repeats; False when that does not end."""
    for _ in range(_MAX_REPAIR_ROUNDS):
        conflicts = np.flatnonzero((columns[:, :slot] == columns[:, slot, None]).any(axis=1))
        if not conflicts.size:
            return True
        for row, other in zip(conflicts, stream.integers(len(columns), conflicts.size), strict=True):
            columns[[row, other], slot] = columns[[other, row], slot]
    return False


def _cyclic_partners(stream: Keystream, num_images: int, num_partners: int) -> NDArray[np.int64]:
    """Images on a random circle; slot s takes the image a random distinct distance away. Works for N = k."""
    circle = stream.permutation(num_images)
    place = np.empty(num_images, dtype=np.int64)
    place[circle] = np.arange(num_images)
    distances = 1 + stream.permutation(num_images - 1)[:num_partners]
    return np.asarray(circle[(place[:, None] + distances[None, :]) % num_images], dtype=np.int64)
