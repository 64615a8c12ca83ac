"""Audit: are the sign masks the bits of an MT19937, and can all others be predicted from a few?

Axes: M known mask bits, t place of a bit in the generator's stream, G groups, d = C·H·W.

A mask bit is known where the sign of the mixed image is certain: radiographs have black borders, so the
mix is black there whatever was mixed. The mask bits of ``torch.randint(2)``, ``numpy.random.randint(2)``
and of any other *fixed bit* of the outputs satisfy one linear recurrence with the 135-term polynomial φ
of degree 19,937 (:mod:`.mersenne_twister`), so b_t = ⊕ r_{t,i}·b_i with r_t = xᵗ mod φ over the first
19,937 bits. A known bit among those is one unknown less, a later one an equation::

    ⊕_{i unknown} r_{t,i}·b_i  =  b_t ⊕ ⊕_{i known} r_{t,i}·b_i                              (1)

Where a third of the bits are known, 13,000 unknowns remain of the generator's 19,937, and elimination
costs a quarter. (Setting up the equations on the state words, as usual, has no such unknown-free start.)
If the sign of a background is certain up to one flip, as when black and white may be exchanged, the flip
is one more unknown of (1) for each group of pixels; φ has an odd number of terms, so it is determined.

With s more equations than unknowns, random bits pass with chance 2⁻ˢ: that is the false-alarm rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError
from ..cost import Cost
from ..view import AttackResult
from .gf2 import Packed, Solution, solve
from .mersenne_twister import (
    DEGREE,
    Words,
    characteristic_polynomial,
    continue_sequence,
    state_from_bits,
)
from .release import Release

SURPLUS = 64  # equations beyond the unknowns: a false alarm has chance 2⁻⁶⁴
MIN_SURPLUS = 32
NEARLY_CONSTANT = 0.02  # standard deviation over mean of |e| at a pixel that all images share
_CHUNK = 512

Bits = NDArray[np.uint8]
Progress = Callable[..., None]


@dataclass(frozen=True, eq=False)
class KnownBits:
    """Mask bits an attacker is sure of.

    Args:
        places: (M,) increasing places in the stream: row·d + place in the image, if nothing else was
            drawn in between.
        bits: (M,) 1 where the sign was flipped.
        groups: (M,) bits of one group share one unknown flip; −1: the bit is certain as it is.
    """

    places: NDArray[np.int64]
    bits: Bits
    groups: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not self.places.shape == self.bits.shape == self.groups.shape or self.places.ndim != 1:
            raise InvalidInputError("places, bits and groups differ in length", hint="one of each a bit")
        if (np.diff(self.places) <= 0).any():
            raise InvalidInputError("places do not increase", hint="sort them; each place once")


@dataclass(frozen=True, eq=False)
class MaskStream:
    """A mask stream broken open: everything before and after the known bits follows.

    Args:
        first_bits: (19,937,) the stream from place ``start`` on.
        start: place of the first.
    """

    first_bits: Bits
    start: int

    def bits(self, place: int, count: int) -> Bits:
        """(count,) mask bits from ``place`` on, which may lie before ``start``: the past is known too."""
        earlier = max(0, self.start - place)
        later = max(0, place + count - self.start - DEGREE)
        before = continue_sequence(self.first_bits, earlier, backwards=True)
        after = continue_sequence(self.first_bits, later)
        return np.concatenate([before, self.first_bits, after])[place - self.start + earlier :][:count]

    def generator(self, output_bit: int = 0) -> np.random.RandomState:
        """numpy's generator in the very state that made the stream, at place ``start``.

        ``torch.randint`` and ``numpy.random.randint`` give the outputs' bit 0, ``torch.rand() < ½`` bit 23,
        Python's ``getrandbits(1)`` bit 31. The masks are the same for each; other draws are not.
        """
        state: Words = state_from_bits(self.bits(self.start, 3 * DEGREE), output_bit)
        generator = np.random.RandomState()
        generator.set_state(("MT19937", state, 0, 0, 0.0))
        return generator


def recover_mask_stream(
    known: KnownBits, *, progress: Progress | None = None
) -> tuple[MaskStream | None, Solution, int]:
    """Solve (1): the stream if the bits are an MT19937's, the solution, and the number of equations.

    The stream is ``None`` if equations contradict each other (another generator) or are too few.
    """
    start = int(known.places[0]) if len(known.places) else 0
    places = known.places - start
    early = places < DEGREE
    num_groups = int(known.groups.max(initial=-1)) + 1
    unknown = np.ones(DEGREE, dtype=bool)
    unknown[places[early]] = False
    num_unknowns = int(unknown.sum()) + num_groups
    for generosity in (1.125, 4.0):  # bits soon after the first involve few unknowns: more of them are needed
        late = equation_rows(np.flatnonzero(~early), math.ceil(generosity * num_unknowns) + SURPLUS)
        if len(late) < num_unknowns + MIN_SURPLUS:
            return None, Solution(None, 0, 0), len(late)
        matrix = _equations(known, places, unknown, late, num_groups, progress)
        solution = solve(matrix, num_unknowns, progress=progress)
        if solution.bits is None:
            return None, solution, len(late)
        if solution.rank == num_unknowns or len(late) == int((~early).sum()):
            break
    if solution.bits is None or solution.rank < num_unknowns:
        return None, solution, len(late)
    flips = np.append(solution.bits[num_unknowns - num_groups :], 0).astype(np.uint8)  # group −1: no flip
    first = np.zeros(DEGREE, dtype=np.uint8)
    first[unknown] = solution.bits[: num_unknowns - num_groups]
    first[places[early]] = known.bits[early] ^ flips[known.groups[early]]
    return MaskStream(first, start), solution, len(late)


def equation_rows(late: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """Which of the later known bits become equations: so many, evenly spread."""
    return late[np.linspace(0, len(late) - 1, min(len(late), wanted)).astype(np.int64)]


def _equations(
    known: KnownBits,
    places: NDArray[np.int64],
    unknown: NDArray[np.bool_],
    late: NDArray[np.int64],
    num_groups: int,
    progress: Progress | None,
) -> Packed:
    """Equation (1) for the known bits ``late``: unknown stream bits, then flips, then the right side."""
    early = places < DEGREE
    known_columns, known_bits = places[early], known.bits[early]
    membership = (known.groups[early][:, None] == np.arange(num_groups)).astype(np.uint8)
    columns = int(unknown.sum()) + num_groups + 1
    width = -(-columns // 64) * 8
    packed = np.zeros((len(late), width), dtype=np.uint8)
    for top, rows in _recurrence_rows(places[late]):
        chunk = late[top : top + len(rows)]
        on_known = rows[:, known_columns]
        # Sums modulo 256 keep their lowest bit, which is the sum over GF(2).
        right = (on_known @ known_bits + known.bits[chunk]) & 1
        flips = (on_known @ membership + (known.groups[chunk][:, None] == np.arange(num_groups))) & 1
        parts = [rows[:, unknown], flips.astype(np.uint8), right[:, None].astype(np.uint8)]
        bytes_of_rows = np.packbits(np.concatenate(parts, axis=1), axis=1, bitorder="little")
        packed[top : top + len(chunk), : bytes_of_rows.shape[1]] = bytes_of_rows
        if progress is not None:
            progress(top, len(late), "setting up equations")
    return packed.view("<u8").astype(np.uint64, copy=False)


def _recurrence_rows(places: NDArray[np.int64]) -> Iterator[tuple[int, Bits]]:
    """Chunks (first row, (n, 19937)) of r_t = xᵗ mod φ for increasing places t ≥ 19,937."""
    phi, top_bit = characteristic_polynomial(), 1 << DEGREE
    power, at = phi ^ top_bit, DEGREE
    num_bytes = -(-DEGREE // 8)
    for top in range(0, len(places), _CHUNK):
        raw = bytearray()
        for place in places[top : top + _CHUNK].tolist():
            for _ in range(place - at):
                power <<= 1
                if power & top_bit:
                    power ^= phi
            at = place
            raw += power.to_bytes(num_bytes, "little")
        packed = np.frombuffer(bytes(raw), dtype=np.uint8).reshape(-1, num_bytes)
        yield top, np.unpackbits(packed, axis=1, count=DEGREE, bitorder="little")


def background_bits(release: Release) -> KnownBits:
    """Mask bits of pixels where |e| hardly varies over the release: a background all images share.

    Nothing but the release is used. What the background is, black or white, is unknown: pixels of a
    channel with the same |e| (to a tenth of its range) share one flip. Rows are taken to be in the order
    in which their masks were drawn.
    """
    magnitudes = np.abs(release.encodings.reshape(len(release), -1)).astype(np.float64)
    mean, spread = magnitudes.mean(0), magnitudes.std(0)
    steady = np.flatnonzero((spread <= NEARLY_CONSTANT * mean) & (magnitudes.min(0) > 0))
    if not steady.size or len(release) < 2:
        none = np.empty(0, dtype=np.int64)
        return KnownBits(none, none.astype(np.uint8), none)
    C, H, W = release.encodings.shape[1:]
    value = np.floor(10 * mean[steady] / magnitudes.max()).astype(np.int64)
    _, groups = np.unique(steady // (H * W) * 100 + value, return_inverse=True)
    places = np.arange(len(release))[:, None] * (C * H * W) + steady
    bits = (release.encodings.reshape(len(release), -1)[:, steady] < 0).astype(np.uint8)
    return KnownBits(places.ravel(), bits.ravel(), np.broadcast_to(groups, places.shape).ravel())


def bits_from_sure_signs(release: Release, similar: NDArray[np.uint8], *, margin: float = 0.02) -> KnownBits:
    """Mask bits of pixels where all ``similar`` (P, C, H, W) images lie on one side of zero.

    A mixture of such images lies on that side too. ``margin`` (in units of e) keeps off pixels where a
    private image might be the first to cross; one wrong bit spoils the solution, so be strict.
    """
    flat = similar.reshape(len(similar), similar.shape[1], -1)
    values = np.stack([release.levels[c][flat[:, c]] for c in range(flat.shape[1])], axis=1)
    values = values.reshape(len(similar), -1)
    dark, bright = values.max(0) < -margin, values.min(0) > margin
    sure = np.flatnonzero(dark | bright)
    encodings = release.encodings.reshape(len(release), -1)[:, sure]
    places = np.arange(len(release))[:, None] * values.shape[1] + sure
    usable = (encodings != 0).ravel()
    bits = ((encodings < 0) == bright[sure]).astype(np.uint8).ravel()[usable]
    return KnownBits(places.ravel()[usable], bits, np.full(len(bits), -1))


def audit_mask_generator(
    release: Release, *, known: KnownBits | None = None, progress: Progress | None = None
) -> AttackResult:
    """Recover the mask stream of a release and predict the masks that were not used for it.

    Args:
        known: mask bits the attacker is sure of; by default :func:`background_bits`.

    Returns:
        ``leaked`` is ``None`` where too few bits are known to decide.
    """
    with Cost() as cost:
        known = known or background_bits(release)
        stream, solution, equations = recover_mask_stream(known, progress=progress)
        predicted, held_out = _held_out(known, stream, equations)
    leaked, verdict = _verdict(stream, solution, equations, len(known.places))
    metrics = {
        "known_bits": float(len(known.places)),
        "equations": float(equations),
        "rank": float(solution.rank),
        "contradictions": float(solution.contradictions),
        "held_out_bits": float(held_out),
    }
    if held_out:
        metrics["held_out_bits_predicted"] = predicted
    return AttackResult(
        name="mask generator",
        verdict=verdict,
        leaked=leaked,
        metrics=metrics,
        intervals={},
        baselines={"held_out_bits_predicted": 0.5, "false_alarm_rate": 2.0**-MIN_SURPLUS},
        **cost.figures(),
        assumptions=(
            "masks are drawn row after row, in the order of the file, with no other draw in between",
            "the sign of some pixels is certain: where |e| is the same in every encoding, or as given",
            "the attacker tries one family: a fixed bit of MT19937 (torch on a CPU, numpy.random, random)",
        ),
        settings={"num_encodings": len(release), "surplus": SURPLUS},
    )


def _held_out(known: KnownBits, stream: MaskStream | None, equations: int) -> tuple[float, int]:
    """Share of known bits, not used in an equation, that the stream predicts; and how many they are.

    A group's flip is unknown, so its bits are compared up to one flip.
    """
    if stream is None:
        return math.nan, 0
    late = np.flatnonzero(known.places - stream.start >= DEGREE)
    rest = np.setdiff1d(late, equation_rows(late, equations))
    if not rest.size:
        return math.nan, 0
    bits = stream.bits(stream.start, int(known.places[rest[-1]]) - stream.start + 1)
    wrong = bits[known.places[rest] - stream.start] ^ known.bits[rest]
    right = 0
    for group in np.unique(known.groups[rest]):
        of_group = wrong[known.groups[rest] == group]
        agree = len(of_group) - int(of_group.sum())
        right += agree if group < 0 else max(agree, len(of_group) - agree)
    return right / len(rest), len(rest)


def _verdict(
    stream: MaskStream | None, solution: Solution, equations: int, known: int
) -> tuple[bool | None, str]:
    if stream is not None:
        return (
            True,
            "The generator of the sign masks was recovered: all masks, past and future, are known.",
        )
    if solution.contradictions:
        return False, "The sign masks are not the bits of a recoverable MT19937 stream."
    if solution.bits is not None and equations - solution.rank >= MIN_SURPLUS:
        return True, "The sign masks are bits of an MT19937; a few more certain ones give all of them away."
    return None, (
        f"Only {known:,} mask bits are certain, too few to tell whether the generator can be recovered."
    )
