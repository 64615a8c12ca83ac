"""From a float update to a vector in Z / 2^b and back, with a bit budget computed before the run.

A site with n_i images, of at most M (max-examples), and update x:

    clip        x <- x min(1, norm-bound / ||x||),  then every entry to [-c, c]
    weight      w_i = n_i / M
    round       q = floor(w_i x / step + u),  u uniform in (0, 1):  E[q] step = w_i x,  |error| < step

    L = min(2^40, floor((2^(b-1) - 1) / n) - noise-levels),  step = c / L
    n (L + noise-levels) <= 2^(b-1) - 1:  the sum over any of the n sites never wraps

The server decodes  mean = M step Σ q_i / Σ n_i  with Σ n_i from a channel, so no n_i is ever seen.
Rounding at random makes the mean unbiased; its standard error from rounding is at most

    M step sqrt(m) / (2 Σ n_i)                   for m sites, as the variance of one rounding is <= 1/4

which is why max-examples should be near the largest site. ``noise-levels`` reserves room for noise
that a site adds to q before masking. Float64 carries w_i x / step + u to 2^-52 L and u has 32 bits, so
the bias is below step (2^-33 + 2^-53 L), at most 2^-13 step; more than 2^40 levels a float64 cannot fill.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from instahide.errors import IntegrityError, InvalidInputError
from instahide.randomness import Randomness

from .channels import MeanChannel, check_channels, decode_channels, encode_channels
from .parameters import MAX_SITES, MAX_VECTOR_LENGTH, RING_BITS
from .statements import statement_hash

FEWEST_LEVELS: Final = 64
MOST_LEVELS: Final = 2**40
CHUNK: Final = 1 << 16
TEST_VECTOR_LENGTH: Final = 4096
_LARGEST_COUNT: Final = 10**12


@dataclass(frozen=True, kw_only=True)
class QuantisationPlan:
    """How updates become ring vectors; the same at every party (``digest`` goes into the roster).

    Args:
        vector_length: entries d of an update.
        num_sites: most sites a sum may be over, n.
        coordinate_bound: c; entries beyond it are clipped.
        max_examples: M, the largest count a site may have; its weight is then 1.
        norm_bound: largest L2 norm of an update, longer ones are scaled down; 0 is no bound.
        ring_bits: 16, 32 or 64.
        precision: largest step allowed; 0 takes the finest that fits.
        noise_levels: room, in steps, for noise each site adds before masking.
        counts: names of the count channels; the first is the weight n_i.
        means: metrics averaged under the mask.

    Raises InvalidInputError at construction if the sum could overflow, saying how many bits it needs.
    """

    vector_length: int
    num_sites: int
    coordinate_bound: float
    max_examples: int
    norm_bound: float = 0.0
    ring_bits: int = 32
    precision: float = 0.0
    noise_levels: int = 0
    counts: tuple[str, ...] = ("num-examples",)
    means: tuple[MeanChannel, ...] = ()

    def __post_init__(self) -> None:
        _check("vector-length", self.vector_length, 1, MAX_VECTOR_LENGTH)
        _check("the number of sites", self.num_sites, 1, MAX_SITES)
        _check("max-examples", self.max_examples, 1, _LARGEST_COUNT)
        _check("noise-levels", self.noise_levels, 0, 2**62)
        if self.ring_bits not in RING_BITS:
            raise InvalidInputError(f"ring-bits is {self.ring_bits!r:.50}", hint="16, 32 or 64")
        if not (math.isfinite(self.coordinate_bound) and self.coordinate_bound > 0):
            raise InvalidInputError("the coordinate bound is no positive number", hint="for example 1.0")
        for name, value in (("norm bound", self.norm_bound), ("precision", self.precision)):
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInputError(f"the {name} is {value!r:.50}", hint="a finite number from 0")
        if not self.counts:
            raise InvalidInputError("there is no count to weight by", hint="for example num-examples")
        check_channels(self.counts, self.means, max_count=self.max_examples, num_sites=self.num_sites)
        self._check_budget()

    def _check_budget(self) -> None:
        wanted = FEWEST_LEVELS if not self.precision else math.ceil(self.coordinate_bound / self.precision)
        if self.levels >= wanted:
            return
        bits = (self.num_sites * (max(wanted, FEWEST_LEVELS) + self.noise_levels)).bit_length() + 1
        raise InvalidInputError(
            f"sums of {self.num_sites} sites need {bits} bits, the ring has {self.ring_bits}",
            hint="raise ring-bits, or allow a larger precision, a smaller coordinate bound, less noise",
        )

    @property
    def levels(self) -> int:
        """L: a site's entries lie in -L..L before noise."""
        fitting = ((1 << (self.ring_bits - 1)) - 1) // self.num_sites - self.noise_levels
        return min(MOST_LEVELS, fitting)

    @property
    def step(self) -> float:
        """Size of one level in a weighted update, c / L."""
        return self.coordinate_bound / self.levels

    @property
    def num_channels(self) -> int:
        """Entries in Z / 2^64 beside the vector."""
        return 1 + len(self.counts) + len(self.means)

    @property
    def quantised_norm_bound(self) -> float:
        """Largest L2 norm of a site's q, in levels: norm-bound / step + sqrt(d), as an entry moves by < 1.

        Infinite without a norm bound of its own or by the range: then c sqrt(d) takes its place.
        """
        by_range = self.coordinate_bound * math.sqrt(self.vector_length)
        clear = min(self.norm_bound, by_range) if self.norm_bound else by_range
        return clear / self.step + math.sqrt(self.vector_length)

    def rounding_error(self, total_examples: int, num_survivors: int) -> float:
        """Bound of the decoded mean's standard error from rounding, in every entry."""
        return self.max_examples * self.step * math.sqrt(num_survivors) / (2 * total_examples)

    def digest(self) -> bytes:
        """SHA-256 over every setting, 32 bytes."""
        numbers = (self.vector_length, self.num_sites, self.max_examples, self.ring_bits, self.noise_levels)
        floats = (self.coordinate_bound.hex(), self.norm_bound.hex(), self.precision.hex())
        means = [part for mean in self.means for part in (mean.name, mean.weight, float(mean.largest).hex())]
        shape = (len(self.counts), len(self.means))
        return statement_hash("quantisation", *numbers, *floats, *shape, *self.counts, *means)


@dataclass(frozen=True)
class EncodedUpdate:
    """A site's update in the ring, still in the clear; ``vector`` (d,), ``channels`` (q,).

    ``norm`` is the L2 norm before clipping; ``clipped_entries`` were outside [-c, c] after it;
    ``cut_metrics`` were above their largest value. All three are for the site's own eyes.
    """

    vector: NDArray[Any]
    channels: NDArray[np.uint64]
    norm: float
    clipped_entries: int
    cut_metrics: tuple[str, ...]


@dataclass(frozen=True)
class DecodedMean:
    """What the server gets: the weighted mean update (d,) float64, totals and mean metrics."""

    mean: NDArray[np.float64]
    counts: dict[str, int]
    means: dict[str, float]


def encode_update(
    plan: QuantisationPlan,
    update: NDArray[np.floating[Any]],
    values: Mapping[str, float],
    *,
    randomness: Randomness | None = None,
) -> EncodedUpdate:
    """Clip, weight and round ``update`` (d,) float32 or float64; ``values`` are the counts and metrics.

    Raises InvalidInputError for another shape, a value that is not finite, or a count out of range.
    """
    stream = (randomness or Randomness()).stream("dither")

    def uniforms(count: int) -> NDArray[np.float64]:
        words = stream.read(4 * count).view("<u4").astype(np.float64)
        return np.asarray((words + 0.5) * 2.0**-32)

    return _encode(plan, update, values, uniforms)


def _encode(
    plan: QuantisationPlan, update: NDArray[Any], values: Mapping[str, float], uniforms: Any
) -> EncodedUpdate:
    channels, cut = encode_channels(plan.counts, plan.means, values, max_count=plan.max_examples)
    norm = _norm(plan, update)
    scale = plan.norm_bound / norm if 0 < plan.norm_bound < norm else 1.0
    weight = int(channels[1]) / plan.max_examples
    vector = np.empty(plan.vector_length, dtype=f"u{plan.ring_bits // 8}")
    signed = vector.view(f"i{plan.ring_bits // 8}")
    outside = 0
    for part in _chunks(plan.vector_length):
        scaled = update[part].astype(np.float64) * scale
        clipped = np.clip(scaled, -plan.coordinate_bound, plan.coordinate_bound)
        outside += int(np.count_nonzero(clipped != scaled))
        clipped *= weight / plan.step
        clipped += uniforms(clipped.size)
        np.floor(clipped, out=clipped)
        # Rounding errors of the floats themselves must not leave the budget either.
        signed[part] = np.clip(clipped, -plan.levels, plan.levels)
    return EncodedUpdate(vector, channels, norm, outside, cut)


def decode_sum(
    plan: QuantisationPlan, vector: NDArray[Any], channels: NDArray[np.uint64], *, num_survivors: int
) -> DecodedMean:
    """The weighted mean of the survivors' updates from their exact sum in the ring.

    Raises:
        IntegrityError: the masks did not cancel.
        InvalidInputError: the arrays do not have the plan's shapes, or the sites had no images.
    """
    if vector.shape != (plan.vector_length,) or vector.dtype != np.dtype(f"u{plan.ring_bits // 8}"):
        raise InvalidInputError(
            f"a sum of {vector.dtype} {vector.shape} does not fit the plan", hint="both ends need one plan"
        )
    sums = decode_channels(plan.counts, plan.means, channels, num_survivors=num_survivors)
    total = sums.counts[plan.counts[0]]
    if total == 0:
        raise InvalidInputError("the sites have no images together", hint="there is no mean to form")
    factor = plan.max_examples * plan.step / total
    signed = vector.view(f"i{plan.ring_bits // 8}")
    mean = np.empty(plan.vector_length)
    for part in _chunks(plan.vector_length):
        np.multiply(signed[part], factor, out=mean[part], casting="unsafe", dtype=np.float64)
    return DecodedMean(mean, sums.counts, sums.means)


def check_test_vector(plan: QuantisationPlan, expected_sha256: bytes | None = None) -> bytes:
    """Encode and decode a published vector under ``plan``; its digest, 32 bytes.

    The vector has x_k = c (((40503 k) mod 65536) - 32768) / 32768 and a third of max-examples, rounds
    to nearest, and is summed over all n sites. Both ends compute the digest of the encoded bytes
    with the plan's and compare.

    Raises:
        IntegrityError: the decoded mean is not the vector, or the digest is not ``expected_sha256``.
    """
    length = min(plan.vector_length, TEST_VECTOR_LENGTH)
    small = QuantisationPlan(**{**_fields(plan), "vector_length": length, "norm_bound": 0.0})
    ramp = (np.arange(length, dtype=np.int64) * 40503) % 65536 - 32768
    update = ramp / 32768 * small.coordinate_bound
    count = max(1, small.max_examples // 3)
    values: dict[str, float] = dict.fromkeys(small.counts, count)
    values |= {mean.name: mean.largest / 2 for mean in small.means}
    encoded = _encode(small, update, values, lambda size: np.full(size, 0.5))
    total, channels = encoded.vector.copy(), encoded.channels.copy()
    for _ in range(small.num_sites - 1):
        total += encoded.vector
        channels += encoded.channels
    decoded = decode_sum(small, total, channels, num_survivors=small.num_sites)
    tolerance = 0.51 * small.max_examples * small.step / count
    wrong = (
        np.abs(decoded.mean - update).max() > tolerance
        or decoded.counts[small.counts[0]] != count * small.num_sites
    )
    octets = [
        part.astype(part.dtype.newbyteorder("<")).tobytes() for part in (encoded.vector, encoded.channels)
    ]
    digest = hashlib.sha256(b"".join([plan.digest(), *octets])).digest()
    if wrong or (expected_sha256 is not None and bytes(expected_sha256) != digest):
        raise IntegrityError(
            "the two ends do not encode the test vector alike",
            hint="compare ring-bits, bounds, max-examples, metrics and the release of instahide-fl",
        )
    return digest


def _norm(plan: QuantisationPlan, update: NDArray[Any]) -> float:
    if update.shape != (plan.vector_length,) or update.dtype.kind != "f":
        raise InvalidInputError(
            f"the update is {update.dtype} of shape {update.shape}",
            hint=f"floating point of shape ({plan.vector_length},)",
        )
    total = 0.0
    for part in _chunks(plan.vector_length):
        piece = update[part].astype(np.float64)
        total += float(piece @ piece)
    if not math.isfinite(total):
        raise InvalidInputError("the update is not finite", hint="training diverged; lower learning-rate")
    return math.sqrt(total)


def _chunks(length: int) -> Iterator[slice]:
    for start in range(0, length, CHUNK):
        yield slice(start, min(start + CHUNK, length))


def _fields(plan: QuantisationPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


def _check(what: str, value: int, smallest: int, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise InvalidInputError(
            f"{what} is {value!r:.50}", hint=f"a whole number from {smallest} to {largest:,}"
        )
