"""Audit: can pixels be solved for, because the encodings keep more digits than 8-bit pixels can fill?

Axes: k sources, C channels, p pixels 0..255 of a source, Q pixels decoded.

With all coefficients known (inside scheme, classes apart, or one public source), a value is a subset sum
|e| = |Σ_j λ_j·x(p_j)| of 256^k possibilities. They lie in a range of about 2, so if |e| is known to
±δ, chance leaves about 2·256^k·δ wrong answers for the two signs::

    k = 2, float32:  0.03     k = 4, float64:  10⁻⁵     k = 2, 8-bit output:  1,000        (1)

Where that is below one, every pixel of *every* source is decoded exactly from a single encoding: no
statistics, no images, no learning. Sums of half the sources are sorted and the other half's are looked
up in them (meet in the middle): 256^⌈k/2⌉ look-ups a pixel instead of 256^k tries.

If x(255 − p) = −x(p), as with the range [−1, 1], the answers of the two signs mirror each other and two
remain: the sign mask then hides one bit a pixel, and nothing else. An affine normalisation that is
not symmetric about zero (mean and standard deviation of a data set) breaks even that tie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError
from ..cost import Cost
from ..view import AttackResult
from .label_leakage import coefficients_from_labels
from .release import Release
from .statistics import wilson_interval

MAX_SOURCES = 4  # five would need tables of 256³ sums
LEAKS_FROM = 0.5  # share of pixels decoded, from which a release counts as decodable
_BLOCK = 1 << 18
_BUCKETS_PER_ENTRY = 8
_PIXELS = {1: 512, 2: 512, 3: 64, 4: 24}

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Decoding:
    """What arithmetic leaves of Q values; column 0 for the sign +, column 1 for −.

    Args:
        counts: (Q, 2) answers that fit.
        pixels: (Q, 2, k) one of them; −1 where there is none.
    """

    counts: NDArray[np.int64]
    pixels: NDArray[np.int64]

    @property
    def candidates(self) -> NDArray[np.int64]:
        """(Q,) answers over both signs."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def unique(self) -> NDArray[np.bool_]:
        """(Q,) one answer, its sign included."""
        return np.asarray(self.candidates == 1)

    @property
    def unique_up_to_sign(self) -> NDArray[np.bool_]:
        """(Q,) one answer, or two that mirror each other, p and 255 − p."""
        mirrored = (self.counts == 1).all(axis=1) & (self.pixels.sum(axis=1) == 255).all(axis=1)
        return np.asarray(self.unique | mirrored)


def decode_values(values: Floats, coefficients: Floats, levels: Floats, tolerance: float) -> Decoding:
    """All answers (p_1, …, p_k, sign) with |sign·e − Σ λ_j·x_j(p_j)| ≤ ``tolerance``, for Q values.

    Args:
        values: (Q,) released values e of encodings with these coefficients.
        coefficients: (k,) λ, k ≤ 4.
        levels: (k, 256) value of each 8-bit pixel of each source before mixing.
        tolerance: half-width δ that surely holds the exact sum.
    """
    k = len(coefficients)
    if not 1 <= k <= MAX_SOURCES:
        raise InvalidInputError(f"{k} sources cannot be decoded", hint=f"at most {MAX_SOURCES} can")
    weighted = np.asarray(coefficients)[:, None] * levels
    half = -(-k // 2)
    (table, in_table), (queries, in_queries) = _sums(weighted[:half]), _sums(weighted[half:])
    buckets = _Buckets.of(table)
    counts = np.zeros((len(values), 2), dtype=np.int64)
    pixels = np.full((len(values), 2, k), -1, dtype=np.int64)
    step = max(1, _BLOCK // len(queries))
    for column, sign in enumerate((1.0, -1.0)):
        for top in range(0, len(values), step):
            part = slice(top, top + step)
            low = sign * values[part, None] - queries[None, ::-1] - tolerance  # ascending: kind to caches
            hit, place = buckets.not_empty(low, low + 2 * tolerance)
            lower = low[hit, place]
            first = np.searchsorted(table, lower)
            number = np.searchsorted(table, lower + 2 * tolerance, side="right") - first
            counts[part, column] += np.bincount(hit, weights=number, minlength=len(low)).astype(np.int64)
            fits = number > 0
            left, right = in_table[first[fits]], in_queries[len(queries) - 1 - place[fits]]
            pixels[hit[fits] + top, column] = np.concatenate([left, right], axis=1)
    return Decoding(counts, pixels)


@dataclass(frozen=True, eq=False)
class _Buckets:
    """An index of a sorted table: most windows of a fine decoding are seen to be empty in two look-ups.

    Args:
        origin, per_unit: value v lies in bucket (v − origin)·per_unit, rounded down.
        starts: (buckets + 1,) number of table entries before each bucket.
    """

    origin: float
    per_unit: float
    starts: NDArray[np.int32]

    @classmethod
    def of(cls, table: Floats) -> _Buckets:
        number = _BUCKETS_PER_ENTRY * len(table)
        span = float(table[-1] - table[0]) or 1.0
        buckets = cls(float(table[0]), (number - 1) / span, np.empty(0, dtype=np.int32))
        counts = np.bincount(buckets._number(table), minlength=number)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return cls(buckets.origin, buckets.per_unit, starts)

    def not_empty(self, low: Floats, high: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the windows [low, high] whose buckets hold an entry of the table."""
        before = self.starts.take(self._number(low), mode="clip")
        after = self.starts.take(self._number(high) + 1, mode="clip")
        rows, columns = np.nonzero(after > before)
        return rows.astype(np.int64), columns.astype(np.int64)

    def _number(self, values: Floats) -> NDArray[np.int64]:
        scaled = (values - self.origin) * self.per_unit
        return np.floor(scaled, out=scaled).astype(np.int64)


def tolerance_of(release: Release, num_sources: int) -> float:
    """δ: half a step of a rounded output (a whole one with dither), else the error bound of its type.

    Each of k products and k − 1 sums of values up to m rounds by at most u·m, u = 2⁻²⁴ or 2⁻⁵³; three more
    roundings for the range and for the coefficient itself.
    """
    steps = release.config.quantization_levels
    if steps is not None:
        return 1.0 / steps
    unit = 2.0**-24 if release.encodings.dtype == np.float32 else 2.0**-53
    if release.labels is not None and release.labels.dtype == np.float32 and unit < 2.0**-24:
        unit = 2.0**-25  # the coefficients are known no better than this
    return (num_sources + 3) * unit * float(np.abs(release.levels).max())


def audit_lattice(
    release: Release,
    *,
    max_pixels: int | None = None,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
) -> AttackResult:
    """Decode a sample of pixels of encodings whose coefficients the labels show.

    Args:
        max_pixels: how many; by default what a few seconds allow.
        seed: of the choice of rows and pixels.
    """
    coefficients = coefficients_from_labels(release)
    rows = np.flatnonzero(~np.isnan(coefficients).any(axis=1))
    k = release.config.num_mixed
    if not rows.size or k > MAX_SOURCES:
        reason = (
            f"{k} sources are more than were tried"
            if rows.size
            else "the labels do not show all coefficients"
        )
        return _result(release, None if rows.size else False, f"Pixels cannot be solved for: {reason}.", {})
    with Cost() as cost:
        decodings = _decode_sample(release, coefficients, rows, max_pixels or _PIXELS[k], seed, progress)
    unique = np.concatenate([d.unique for d in decodings])
    up_to_sign = np.concatenate([d.unique_up_to_sign for d in decodings])
    candidates = np.concatenate([d.candidates for d in decodings])
    metrics = {
        "pixels_decoded": float(unique.mean()),
        "pixels_decoded_up_to_sign": float(up_to_sign.mean()),
        "candidates_per_pixel_median": float(np.median(candidates)),
        "bits_left_per_pixel": float(np.log2(np.maximum(candidates, 1)).mean()),
        "bits_per_pixel_before": 8.0 * k,
        "pixels_tried": float(len(unique)),
    }
    intervals = {
        "pixels_decoded_up_to_sign": wilson_interval(int(up_to_sign.sum()), len(up_to_sign)),
        "pixels_decoded": wilson_interval(int(unique.sum()), len(unique)),
    }
    leaked = bool(up_to_sign.mean() >= LEAKS_FROM)
    verdict = (
        "Most pixels of all mixed images can be solved for exactly from one encoding"
        + ("." if unique.mean() >= LEAKS_FROM else ", except for one sign a pixel.")
        if leaked
        else "Pixels cannot be solved for: too many answers fit each value, or none does."
    )
    return _result(release, leaked, verdict, metrics, intervals, cost, seed)


def _decode_sample(
    release: Release,
    coefficients: Floats,
    rows: NDArray[np.int64],
    max_pixels: int,
    seed: int,
    progress: Callable[..., None] | None,
) -> list[Decoding]:
    """Random pixels, of as many rows as there are: some pairs of coefficients suit the attacker better."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(rows)[:max_pixels]
    C = release.encodings.shape[1]
    k = release.config.num_mixed
    flat = release.encodings.reshape(len(release), C, -1).astype(np.float64)
    each = -(-max_pixels // len(chosen))
    decodings = []
    for i, row in enumerate(chosen):
        channel = int(rng.integers(C))
        pixels = rng.permutation(flat.shape[2])[:each]
        levels = np.broadcast_to(release.levels[channel], (k, 256))
        decodings.append(
            decode_values(flat[row, channel, pixels], coefficients[row], levels, tolerance_of(release, k))
        )
        if progress is not None:
            progress(i + 1, len(chosen), "decoding pixels")
    return decodings


def _sums(weighted: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Sorted sums of one value from each of m rows of 256, (256^m,), and which: (256^m, m)."""
    m = len(weighted)
    sums = np.zeros(1)
    for row in weighted:
        sums = (sums[:, None] + row[None, :]).ravel()
    which = np.stack(np.unravel_index(np.arange(len(sums)), (256,) * m), axis=1) if m else np.empty((1, 0))
    order = np.argsort(sums, kind="stable")
    return sums[order], which[order].astype(np.int64)


def _result(
    release: Release,
    leaked: bool | None,
    verdict: str,
    metrics: dict[str, float],
    intervals: dict[str, tuple[float, float]] | None = None,
    cost: Cost | None = None,
    seed: int | None = None,
) -> AttackResult:
    return AttackResult(
        name="lattice decoding",
        verdict=verdict,
        leaked=leaked,
        metrics=metrics,
        intervals=intervals or {},
        baselines={"pixels_decoded": 2.0**-8},
        **(cost or Cost()).figures(),
        assumptions=(
            "labels show every coefficient of the decoded rows (classes apart; at most one public source)",
            "images were 8-bit, and the map from pixel to value before mixing is public",
            "nothing else is known: no image, no statistics, one encoding",
        ),
        settings={"num_mixed": release.config.num_mixed, "type": str(release.encodings.dtype)},
        seed=seed,
    )
