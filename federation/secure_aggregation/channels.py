"""Channels: the numbers that travel beside the vector, summed under the mask like it.

Each site adds whole numbers in Z / 2^64:

    sites                 1                              the sum must equal the number of survivors
    each count            n_i, 0 .. max-examples         exact sums
    each mean             round(w_i v_i 2^20)            Σ / 2^20 / Σ w_i;  w_i a count, or 1

So the server learns the total number of images and the weighted mean loss, and nobody's own. A value
above its ``largest`` is cut to it and told to the site's caller; every site must give every mean
of the plan whose weight is not 0, or the sums would belong to different sets of sites.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from instahide.errors import IntegrityError, InvalidInputError

FRACTION_BITS: Final = 20
"""A mean's error from rounding is below 2^-21 / (mean weight): 4.8e-7 for a weight of 1."""
CHANNEL_BITS: Final = 64


@dataclass(frozen=True, kw_only=True)
class MeanChannel:
    """A metric averaged over sites: with the count named ``weight``, or, for "", each site once.

    Values lie in [0, ``largest``].
    """

    name: str
    weight: str = ""
    largest: float = 1.0


@dataclass(frozen=True)
class ChannelSums:
    """Decoded sums: ``counts`` by name, ``means`` by name (absent where the total weight is 0)."""

    counts: dict[str, int]
    means: dict[str, float]


def check_channels(
    counts: Sequence[str], means: Sequence[MeanChannel], *, max_count: int, num_sites: int
) -> None:
    """Raises InvalidInputError for a repeated name, an unknown weight, or a sum that could exceed 64 bits."""
    names = ["sites", *counts, *(mean.name for mean in means)]
    if len(set(names)) != len(names):
        raise InvalidInputError("two channels have the same name", hint="name each once; 'sites' is taken")
    for mean in means:
        if mean.weight not in ("", *counts):
            raise InvalidInputError(
                f"the mean {mean.name} is weighted by {mean.weight!r:.50}",
                hint="one of the counts, or nothing",
            )
        if not (math.isfinite(mean.largest) and mean.largest > 0):
            raise InvalidInputError(f"largest of {mean.name} is {mean.largest!r}", hint="a positive number")
        largest_weight = max_count if mean.weight else 1
        _check_budget(mean.name, num_sites * (largest_weight * mean.largest * 2**FRACTION_BITS + 1))
    if counts:
        _check_budget(counts[0], num_sites * max_count)


def encode_channels(
    counts: Sequence[str], means: Sequence[MeanChannel], values: Mapping[str, float], *, max_count: int
) -> tuple[NDArray[np.uint64], tuple[str, ...]]:
    """One site's channels (1 + counts + means,), and the names of the means that were cut to ``largest``.

    Raises InvalidInputError for a missing, unknown, negative or non-finite value, or a count too large.
    """
    unknown = sorted(set(values) - {*counts, *(mean.name for mean in means)})
    if unknown:
        raise InvalidInputError(f"there is no channel {unknown[0]!r:.100}", hint="plan it before the run")
    words = [1]
    for name in counts:
        count: Any = values.get(name)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= max_count:
            raise InvalidInputError(
                f"the count {name} is {count!r:.50}",
                hint=f"a whole number from 0 to max-examples, {max_count}",
            )
        words.append(count)
    cut = []
    for mean in means:
        weight = int(values[mean.weight]) if mean.weight else 1
        value = float(values.get(mean.name, math.nan if weight else 0.0))
        if not (math.isfinite(value) and value >= 0):
            raise InvalidInputError(
                f"the value of {mean.name} is missing, negative or not finite",
                hint="every site gives every mean of the plan",
            )
        if value > mean.largest:
            value = mean.largest
            cut.append(mean.name)
        words.append(round(weight * value * 2**FRACTION_BITS))
    return np.array(words, dtype=np.uint64), tuple(cut)


def decode_channels(
    counts: Sequence[str], means: Sequence[MeanChannel], sums: NDArray[np.uint64], *, num_survivors: int
) -> ChannelSums:
    """Sums and weighted means from the channels' sum.

    Raises IntegrityError if the sites' channel is not the number of survivors: the masks of some
    site did not cancel, and nothing in the sum means anything.
    """
    if sums.shape != (1 + len(counts) + len(means),):
        raise InvalidInputError(f"channels of shape {sums.shape}", hint="both ends need the same plan")
    if int(sums[0]) != num_survivors:
        raise IntegrityError(
            "the masks of some site did not cancel: the sum is noise and is not used",
            hint="a site masked with a wrong key or took another for missing; begin a new session",
        )
    totals = {name: int(total) for name, total in zip(counts, sums[1:], strict=False)}
    weights = {"": num_survivors, **totals}
    shown = {
        mean.name: int(total) / 2**FRACTION_BITS / weights[mean.weight]
        for mean, total in zip(means, sums[1 + len(counts) :], strict=True)
        if weights[mean.weight]
    }
    return ChannelSums(totals, shown)


def _check_budget(name: str, largest_sum: float) -> None:
    if largest_sum >= 2.0**CHANNEL_BITS:
        raise InvalidInputError(
            f"the sum of {name} needs {math.ceil(math.log2(largest_sum))} bits, a channel has {CHANNEL_BITS}",
            hint="lower max-examples or the metric's largest value",
        )
