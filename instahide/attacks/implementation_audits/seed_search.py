"""Audit: were the coefficients, or the masks, drawn after seeding with a small number?

Axes: S seeds tried together, N encodings, k sources, k_priv private ones, R rows replayed.

``torch.manual_seed`` keeps 32 bits of a seed on the CPU (s and s + 2³² give the same draws), and so does
``numpy.random.seed``: 2³² tries exhaust them whatever the user typed. One soft label is a checksum: with
classes apart it shows the private coefficients, whose ratio min / max does not change with the label's
normalisation. A seed is a candidate if the first row it draws that the law accepts has the ratio of its
label (of *any* label, where encodings are shuffled); it is confirmed by replaying 64 rows with the
real generator and counting how many have a label of exactly these weights, against a wrong seed's count.
On a coarse grid rows fit by chance, so there the file's order is needed.

The masks of ``torch.randint(2)`` give another check: known mask bits of the first encoding against the
lowest bits of the first outputs.

Both are searched many seeds at once (:mod:`.mersenne_twister`): seeding costs 0.4 µs a seed and core, a
whole try about 1 µs, so 2³² seeds are some 1.2 hours of one core. Generators whose seeding or sampling is
not re-written (``default_rng``, Dirichlet draws) are replayed one by one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...encoder_config import EncoderConfig
from ...errors import InvalidInputError
from ..cost import Cost
from ..view import AttackResult
from .mask_recovery import KnownBits, background_bits
from .mersenne_twister import MAX_FIRST_OUTPUTS, first_outputs
from .release import Release
from .seed_laws import MAX_NORMALS, SEED_LAWS, Floats, SeedLaw
from .statistics import binomial_tail_bound

BLOCK_SEEDS = 1 << 14  # words of this many seeds fit the second-level cache
REPLAYED_ROWS = 64
FALSE_ALARM = 1e-12  # of one confirmation; 2³² candidates then give 0.004
FIRST_ROWS = 6  # tried while the law rejects a seed's draws: at k = 6 it rejects 44 %, six in a row 0.7 %
SHUFFLED_ROWS = 12  # with half of the labels useless (k = 4 of ten classes) twelve rows all are with 0.0005
MASK_BITS = 64

Progress = Callable[..., None]


@dataclass(frozen=True, eq=False)
class LabelChecksum:
    """What labels say about coefficients, whatever their normalisation and order of classes.

    Args:
        shares: (N, k_priv) private coefficients divided by their sum, ascending; NaN where classes
            coincide.
        config, num_private, bounded: the law; ``bounded``: ``min_private_sum`` applies.
        tolerance: of a share.
        in_order: row r of the file was drawn as row r.
    """

    shares: Floats
    config: EncoderConfig
    num_private: int
    bounded: bool
    tolerance: float
    in_order: bool

    @classmethod
    def of(cls, release: Release, *, in_order: bool | None = None) -> LabelChecksum:
        if release.labels is None:
            raise InvalidInputError("the release has no labels", hint="search the masks instead")
        labels = release.labels.astype(np.float64)
        private = release.num_private
        shares = (
            np.sort(labels, axis=1)[:, -private:] if private <= labels.shape[1] else np.empty((0, private))
        )
        if len(shares) == 0 or private < 2:
            raise InvalidInputError(
                "labels do not show two coefficients of a row", hint="at least two private sources are needed"
            )
        apart = ((labels > 0).sum(axis=1) == private)[:, None]
        shares = np.where(apart, shares / shares.sum(axis=1, keepdims=True).clip(1e-12), np.nan)
        grid = release.config.coefficient_grid
        tolerance = 2.5e-7 if grid is None else 1.01 / grid
        in_order = release.in_data_order if in_order is None else in_order
        return cls(shares, release.config, private, release.scheme == "cross", tolerance, in_order)

    def targets(self, row: int) -> Floats:
        """Sorted ratios min / max that the ``row``-th drawn row may show; empty: it shows nothing."""
        if self.in_order:
            return _ratios(self.shares[row : row + 1])
        return self._all_targets

    @cached_property
    def _all_targets(self) -> Floats:
        return _ratios(self.shares)

    def split(self, normals: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """(S, k_priv) ascending shares of (k, S) unnormalised rows, and whether the law accepts them."""
        total = normals.sum(axis=0)
        private = normals[: self.num_private]
        weight = private.sum(axis=0)
        accepted = normals.max(axis=0) <= self.config.max_coefficient * total
        if self.bounded:
            accepted &= weight >= self.config.min_private_sum * total
        return np.sort(private / weight, axis=0).T, accepted


def _ratios(shares: Floats) -> Floats:
    rows = shares[~np.isnan(shares[:, 0])]
    return np.sort(rows[:, 0] / rows[:, -1])


def search_seeds(
    law: SeedLaw,
    checksum: LabelChecksum,
    seeds: range,
    *,
    max_seconds: float = math.inf,
    progress: Progress | None = None,
) -> tuple[int | None, int]:
    """The first confirmed seed in ``seeds``, or ``None``; and how many were tried within the budget."""
    started = time.process_time()
    chance = _chance(law, checksum)
    for first in range(seeds.start, seeds.stop, BLOCK_SEEDS):
        block = range(first, min(first + BLOCK_SEEDS, seeds.stop))
        for seed in _candidates(law, checksum, block).tolist():
            if _is_confirmed(law, checksum, seed, chance):
                return seed, block.stop - seeds.start
        if progress is not None:
            progress(block.stop - seeds.start, len(seeds), law.name)
        if time.process_time() - started > max_seconds:
            return None, block.stop - seeds.start
    return None, len(seeds)


def _candidates(law: SeedLaw, checksum: LabelChecksum, block: range) -> NDArray[np.int64]:
    """Seeds worth a replay: a first row that the law accepts fits its label, or any label if shuffled."""
    seeds = np.arange(block.start, block.stop, dtype=np.int64)
    if not checksum.in_order:
        k = checksum.config.num_mixed
        drawn = _drawn(law, seeds, min(SHUFFLED_ROWS, len(checksum.shares)), k)
        # A row need not fit: its label may be one of coinciding classes, which shows nothing.
        rows = (_fits(checksum, drawn[first : first + k], 0)[0] for first in range(0, len(drawn), k))
        return seeds[np.logical_or.reduce(list(rows))]
    active, hits = seeds, [seeds[:0]]
    rows_in_order = _informative_rows(checksum)
    for row in rows_in_order:
        if active.size:
            fits, accepted = _fits(checksum, _row(law, active, row, checksum), row)
            hits.append(active[fits])
            active = active[~accepted & ~fits]
    candidates = np.concatenate(hits)
    for row in rows_in_order[1:4]:  # rows of a coarse grid fit by chance: a few more, before a replay
        if candidates.size:
            fits, accepted = _fits(checksum, _row(law, candidates, row, checksum), row)
            candidates = candidates[fits | ~accepted]
    return candidates


def _fits(checksum: LabelChecksum, normals: Floats, row: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether the law accepts a row of each seed and a label shows its ratio; and whether it accepts it."""
    shares, accepted = checksum.split(normals)
    ratio, targets = shares[:, 0] / shares[:, -1], checksum.targets(row)
    if not targets.size:
        return np.zeros_like(accepted), accepted
    above = np.searchsorted(targets, ratio).clip(max=len(targets) - 1)
    below = np.maximum(above - 1, 0)
    gap = np.minimum(np.abs(targets[above] - ratio), np.abs(targets[below] - ratio))
    # A ratio of shares moves by at most tolerance·(1 + ratio) / max share ≤ 2·tolerance·k_priv.
    near = gap <= 2 * checksum.num_private * checksum.tolerance
    return accepted & near | np.isnan(ratio), accepted


def _informative_rows(checksum: LabelChecksum) -> list[int]:
    return [row for row in range(min(24, len(checksum.shares))) if len(checksum.targets(row))][:FIRST_ROWS]


def _row(law: SeedLaw, seeds: NDArray[np.int64], row: int, checksum: LabelChecksum) -> Floats:
    """(k, S) unnormalised coefficients of one row."""
    k = checksum.config.num_mixed
    return _drawn(law, seeds, row + 1, k)[row * k :]


def _drawn(law: SeedLaw, seeds: NDArray[np.int64], rows: int, k: int) -> Floats:
    """(rows·k, S) unnormalised coefficients of the first rows of each seed."""
    if law.normals is not None and rows * k <= MAX_NORMALS:
        return law.normals(seeds.astype(np.uint32), rows * k)
    return np.stack([law.replay(int(seed), rows, k).ravel() for seed in seeds], axis=1)


def _chance(law: SeedLaw, checksum: LabelChecksum) -> float:
    """How often a row of a wrong seed fits: counted over eight seeds, with one more hit than was seen."""
    counts = [_matches(law, checksum, 2**31 + 104_729 * i) for i in range(8)]
    return (sum(right for right, _ in counts) + 1) / (sum(tried for _, tried in counts) + 2)


def _is_confirmed(law: SeedLaw, checksum: LabelChecksum, seed: int, chance: float) -> bool:
    """Whether replayed rows fit far more often than those of wrong seeds."""
    right, tried = _matches(law, checksum, seed)
    return tried >= 8 and binomial_tail_bound(right, tried, chance) < FALSE_ALARM


def _matches(law: SeedLaw, checksum: LabelChecksum, seed: int) -> tuple[int, int]:
    """Replayed rows that have a label of their weights, and rows that could have one."""
    rows = min(REPLAYED_ROWS, len(checksum.shares))
    normals = law.replay(seed, rows, checksum.config.num_mixed).T
    if not checksum.in_order:
        fits, accepted = _fits(checksum, normals, 0)
        return int(fits.sum()), int(accepted.sum())
    shares, accepted = checksum.split(normals)
    near = np.abs(checksum.shares[:rows] - shares).max(axis=1) <= checksum.tolerance
    usable = accepted & ~np.isnan(checksum.shares[:rows, 0])
    return int((near & usable).sum()), int(usable.sum())


def search_mask_seeds(
    known: KnownBits,
    seeds: range,
    *,
    output_bit: int = 0,
    max_seconds: float = math.inf,
    progress: Progress | None = None,
) -> tuple[int | None, int]:
    """The first seed whose outputs have the known mask bits, up to the groups' flips; how many were tried.

    Only places before 227 are used, at most 64 of them; n of them (less one a group) let a wrong seed
    pass with chance 2⁻ⁿ, so n must exceed the bits of the seeds by far.
    """
    places, bits, groups = _first_bits(known)
    certain = int((groups < 0).sum())
    checks = len(places) if certain == len(places) else len(places) - len(np.unique(groups[groups >= 0]))
    if checks < len(seeds).bit_length() + 16:
        return None, 0
    started = time.process_time()
    for first in range(seeds.start, seeds.stop, BLOCK_SEEDS):
        block = np.arange(first, min(first + BLOCK_SEEDS, seeds.stop), dtype=np.int64).astype(np.uint32)
        outputs = first_outputs(block, int(places[-1]) + 1)[places]
        differ = (outputs >> np.uint32(output_bit) & np.uint32(1)).astype(np.uint8) ^ bits[:, None]
        for group in np.unique(groups):
            of_group = groups == group
            if group >= 0:
                differ[of_group] ^= differ[np.flatnonzero(of_group)[0]]
        found = np.flatnonzero(~differ.any(axis=0))
        tried = first - seeds.start + len(block)
        if found.size:
            return int(block[found[0]]), tried
        if progress is not None:
            progress(tried, len(seeds), "masks")
        if time.process_time() - started > max_seconds:
            return None, tried
    return None, len(seeds)


def _first_bits(known: KnownBits) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    usable = np.flatnonzero(known.places < MAX_FIRST_OUTPUTS)[:MASK_BITS]
    return known.places[usable], known.bits[usable], known.groups[usable]


def audit_seeds(
    release: Release,
    *,
    seed_bits: int = 16,
    known: KnownBits | None = None,
    laws: tuple[SeedLaw, ...] = SEED_LAWS,
    max_seconds: float = math.inf,
    progress: Progress | None = None,
) -> AttackResult:
    """Try the seeds 0 .. 2^seed_bits − 1 of every law against labels and masks.

    Args:
        known: mask bits known for certain; by default :func:`background_bits`.
        max_seconds: processor time for each law; a search that ends early is said to be partial.
    """
    if not 1 <= seed_bits <= 32:
        raise InvalidInputError(f"seed_bits is {seed_bits}", hint="use 1 to 32")
    seeds = range(1 << seed_bits)
    found: dict[str, int] = {}
    tried: dict[str, int] = {}
    rates: dict[str, float] = {}
    checksum = _checksum_or_none(release)
    with Cost() as cost:
        for law in laws if checksum is not None else ():
            assert checksum is not None
            started = time.process_time()
            seed, tried[law.name] = search_seeds(
                law, checksum, seeds, max_seconds=max_seconds, progress=progress
            )
            rates[law.name] = tried[law.name] / max(time.process_time() - started, 1e-9)
            if seed is not None:
                found[law.name] = seed
        known = known or background_bits(release)
        for name, bit in MASK_LAWS.items():
            started = time.process_time()
            seed, tried[name] = search_mask_seeds(
                known, seeds, output_bit=bit, max_seconds=max_seconds, progress=progress
            )
            rates[name] = tried[name] / max(time.process_time() - started, 1e-9)
            if seed is not None:
                found[name] = seed
    tried = {name: count for name, count in tried.items() if count}
    return AttackResult(
        name="small seeds",
        verdict=_verdict(found, tried, len(seeds)),
        leaked=True if found else (False if tried else None),
        metrics={
            "seeds_found": float(len(found)),
            **{f"seeds_per_second: {name}": rates[name] for name in tried},
            **{f"core_hours_for_all_32_bit_seeds: {name}": 2.0**32 / rates[name] / 3600 for name in tried},
        },
        intervals={},
        baselines={"false_alarm_rate": FALSE_ALARM},
        **cost.figures(),
        assumptions=(
            "the generator was seeded immediately before the coefficients (or the masks) of this release",
            "the sampler is one of those listed; its code is public",
            *(("labels show the shares of the private sources where classes differ",) if checksum else ()),
        ),
        settings={"seed_bits": seed_bits, "tried": tried, "found": found, "num_encodings": len(release)},
    )


MASK_LAWS = {"masks by randint(2) of torch or numpy": 0, "masks by torch.rand() < 1/2": 23}


def _checksum_or_none(release: Release) -> LabelChecksum | None:
    try:
        return LabelChecksum.of(release)
    except InvalidInputError:
        return None


def _verdict(found: dict[str, int], tried: dict[str, int], num_seeds: int) -> str:
    if found:
        return "A small seed reproduces this release: every coefficient or mask drawn from it is known."
    if not tried:
        return "Neither labels nor certain mask bits give a seed away, so none could be checked."
    if min(tried.values()) < num_seeds:
        return "No seed was found; the search stopped at its time limit before all seeds were tried."
    return "None of the seeds tried reproduces this release."
