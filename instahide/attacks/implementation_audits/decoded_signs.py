"""Mask bits from arithmetic: pixels that decode uniquely give their sign away, and so the generator.

Axes: N encodings, d = C·H·W values, M known bits.

Where the range of pixel values is not symmetric about zero (a data set's mean and standard deviation, as
published), a pixel decoded by :mod:`.lattice` comes with its sign. That answer is certain: the truth
always fits, and it fits alone. Two sources in float32 so give 96 % of all mask bits, and a dozen 32×32
encodings are enough for :mod:`.mask_recovery` to predict every other mask of a framework's generator:
unsound precision opens an unsound generator, with no image and no background known.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .label_leakage import coefficients_from_labels
from .lattice import decode_values, tolerance_of
from .mask_recovery import KnownBits
from .release import Release

ENOUGH_BITS = 32_000
MAX_SOURCES_DECODED = 3  # four take seven seconds an image


def bits_from_decoding(
    release: Release, *, enough: int = ENOUGH_BITS, progress: Callable[..., None] | None = None
) -> KnownBits:
    """Mask bits of uniquely decoded pixels, row after row until there are ``enough``.

    Rows whose first 64 pixels hardly decode are passed over, and the search ends after ten of them.
    """
    k = release.config.num_mixed
    coefficients = coefficients_from_labels(release)
    N, C = release.encodings.shape[:2]
    flat = release.encodings.reshape(N, C, -1).astype(np.float64)
    places, bits = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.uint8)]
    failures, found = 0, 0
    solvable = ~np.isnan(coefficients).any(axis=1) & (k <= MAX_SOURCES_DECODED)
    for row in np.flatnonzero(solvable):
        if found >= enough or failures >= 10:
            break
        for channel in range(C):
            levels = np.broadcast_to(release.levels[channel], (k, 256))
            start = decode_values(
                flat[row, channel, :64], coefficients[row], levels, tolerance_of(release, k)
            )
            if start.unique.mean() < 0.2:
                failures += 1
                break
            whole = decode_values(flat[row, channel], coefficients[row], levels, tolerance_of(release, k))
            sure = np.flatnonzero(whole.unique)
            places.append((int(row) * C + channel) * flat.shape[2] + sure)
            bits.append((whole.counts[sure, 1] == 1).astype(np.uint8))
            found += len(sure)
        if progress is not None:
            progress(min(found, enough), enough, "decoding signs")
    return KnownBits(np.concatenate(places), np.concatenate(bits), np.full(found, -1))
