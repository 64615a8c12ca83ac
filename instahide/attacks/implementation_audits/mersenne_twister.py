"""MT19937, the generator behind torch (CPU), numpy's ``RandomState`` and Python's ``random``.

Axes: S seeds, t steps of the generator (one 32-bit output word each).

Matsumoto and Nishimura, ACM TOMACS 8(1), 1998. The state is 624 words of 32 bits and moves by::

    s[t+624] = s[t+397] ⊕ v·A,   v = top bit of s[t] ‖ low 31 bits of s[t+1]              (1)
    v·A = (v >> 1) ⊕ a·v₀,       a = 0x9908B0DF, v₀ the lowest bit of v

and an output is a word with its bits mixed ("tempered"). Two facts make it unfit for secrets:

* it is *seeded* from 32 bits by torch and by ``numpy.random.seed`` (Knuth's recurrence below), so all
  first outputs of all seeds can be tried. Done here for many seeds at once, one numpy operation a step;
* it is *linear* over GF(2). Write x for "one step later". By (1) the bits S_b of the state words obey
  S_{b+1} = y·S_b ⊕ a_b·S_0 with y = x⁶²³ ⊕ x³⁹⁶ for b ≤ 29 (bit 31 comes from the word before), so every
  bit of every word is a *sparse shift of bit 0*, and following b up to 31 and back gives the
  characteristic polynomial φ(x) in closed form: degree 19,937 with 135 terms. Any fixed bit of the
  outputs, the sign mask of ``torch.randint(2)`` being bit 0, satisfies the recurrence φ.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

STATE_WORDS = 624
DEGREE = 19_937
_SHIFT = 397
_TWIST = 0x9908B0DF
_KNUTH = 1_812_433_253
MAX_FIRST_OUTPUTS = STATE_WORDS - _SHIFT  # the outputs (1) makes from seeded words alone

Words = NDArray[np.uint32]


def first_outputs(seeds: Words, count: int) -> Words:
    """(count, S) first outputs after ``torch.manual_seed(s)`` or ``numpy.random.seed(s)``; count ≤ 227.

    Seeding: s[0] = seed, s[i] = 1812433253·(s[i−1] ⊕ (s[i−1] >> 30)) + i. Output t needs the words t, t+1
    and t + 397, so the recurrence runs 397 + count steps, of all seeds together.
    """
    low, high = _seeded_words(seeds, count)
    return temper(_twist(low[:-1], low[1:], high))


def first_outputs_of_python(seeds: Words, count: int) -> Words:
    """(count, S) first ``getrandbits(32)`` after ``random.seed(s)``, s < 2³²; count ≤ 227.

    Python seeds by an array (here of one word): two passes over all 624 words.
    """
    assert 1 <= count <= MAX_FIRST_OUTPUTS
    words = np.empty((STATE_WORDS, len(seeds)), dtype=np.uint32)
    words[:] = _python_start()[:, None]
    scratch = np.empty(len(seeds), dtype=np.uint32)
    i = 1
    for _ in range(STATE_WORDS):
        i = _mix(words, i, 1_664_525, seeds, scratch)
    for _ in range(STATE_WORDS - 1):
        i = _mix(words, i, 1_566_083_941, np.uint32(-i % 2**32), scratch)
    words[0] = 0x80000000
    return temper(_twist(words[:count], words[1 : count + 1], words[_SHIFT : _SHIFT + count]))


def temper(words: Words) -> Words:
    """Outputs of state words: y ⊕= y≫11; y ⊕= (y≪7)&0x9D2C5680; y ⊕= (y≪15)&0xEFC60000; y ⊕= y≫18."""
    y = words ^ (words >> np.uint32(11))
    y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    y ^= y >> np.uint32(18)
    return y


@cache
def tempering_masks() -> tuple[int, ...]:
    """For each output bit, the state bits whose exclusive or it is; tempering is linear."""
    images = temper(np.uint32(1) << np.arange(32, dtype=np.uint32))
    return tuple(sum(1 << b for b in range(32) if int(images[b]) >> out & 1) for out in range(32))


@cache
def state_bit_polynomials() -> tuple[int, ...]:
    """S_b as polynomials in x applied to S_0, b = 0..31; bit i of an int is the coefficient of xⁱ."""
    y = (1 << 623) | (1 << 396)
    polynomials = [1]
    for b in range(30):
        polynomials.append(_product(polynomials[-1], y) ^ (_TWIST >> b & 1))
    polynomials.append(_product(polynomials[-1], y << 1) ^ (_TWIST >> 30 & 1) << 1)
    return tuple(polynomials)


@cache
def characteristic_polynomial() -> int:
    """φ(x): the recurrence of every output bit; bit i of the int is the coefficient of xⁱ."""
    # (x⁶²⁴ ⊕ x³⁹⁷)·S_31 = a_31·x·S_0 closes the circle; it holds a factor x, which is no recurrence.
    around = _product(state_bit_polynomials()[31], (1 << 624) | (1 << 397)) ^ (_TWIST >> 31) << 1
    return around >> 1


def recurrence_taps() -> NDArray[np.int64]:
    """The 134 exponents i < 19,937 with b[t + 19937] = ⊕ b[t + i]."""
    phi = characteristic_polynomial()
    return np.array([i for i in range(DEGREE) if phi >> i & 1], dtype=np.int64)


def continue_sequence(bits: NDArray[np.uint8], count: int, *, backwards: bool = False) -> NDArray[np.uint8]:
    """``count`` further bits of one output bit, after (or before) at least 19,937 of them.

    Backwards the sequence obeys the reciprocal polynomial, so a stream is known in both directions.
    """
    if backwards:
        taps = np.append(0, DEGREE - recurrence_taps()[:0:-1])
        return _continued(bits[::-1], count, taps)[::-1]
    return _continued(bits, count, recurrence_taps())


def state_from_bits(bits: NDArray[np.uint8], output_bit: int) -> Words:
    """(624,) the state words behind outputs 0..623 of a sequence; tempered they are those outputs.

    As a state of numpy's generator, ``("MT19937", words, 0)``, they give the sequence from output 0 on.

    Args:
        bits: at least 3·19,937 consecutive values of one bit of the outputs (extend them with
            :func:`continue_sequence`).
        output_bit: which bit, 0 the lowest.

    With G(x) the polynomial of that output bit, S_0 = G⁻¹·bits modulo φ; all other state bits are shifts.
    """
    phi, polynomials = characteristic_polynomial(), state_bit_polynomials()
    mask = tempering_masks()[output_bit]
    forward = 0
    for b in range(32):
        if mask >> b & 1:
            forward ^= polynomials[b]
    inverse = _inverse(_remainder(forward, phi), phi)
    sequence = int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")
    lowest = _apply(inverse, sequence)
    words = np.zeros(STATE_WORDS, dtype=np.uint32)
    for b in range(32):
        series = _apply(polynomials[b], lowest)
        raw = (series & ((1 << STATE_WORDS) - 1)).to_bytes(STATE_WORDS // 8, "little")
        column = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little").astype(np.uint32)
        words |= column << np.uint32(b)
    return words


def _continued(bits: NDArray[np.uint8], count: int, taps: NDArray[np.int64]) -> NDArray[np.uint8]:
    block = DEGREE - int(taps[-1])  # so many new bits need only old ones
    out = np.empty(len(bits) + count, dtype=np.uint8)
    out[: len(bits)] = bits
    for start in range(len(bits), len(out), block):
        size = min(block, len(out) - start)
        new = np.zeros(size, dtype=np.uint8)
        for tap in taps:
            first = start - DEGREE + int(tap)
            new ^= out[first : first + size]
        out[start : start + size] = new
    return out[len(bits) :]


def _seeded_words(seeds: Words, count: int) -> tuple[Words, Words]:
    """Words 0..count and 397..396+count of the seeded state: (count + 1, S) and (count, S)."""
    assert 1 <= count <= MAX_FIRST_OUTPUTS
    low = np.empty((count + 1, len(seeds)), dtype=np.uint32)
    high = np.empty((count, len(seeds)), dtype=np.uint32)
    word, scratch = seeds.astype(np.uint32), np.empty(len(seeds), dtype=np.uint32)
    for i in range(_SHIFT + count):
        if i <= count:
            low[i] = word
        if i >= _SHIFT:
            high[i - _SHIFT] = word
        np.right_shift(word, np.uint32(30), out=scratch)
        np.bitwise_xor(scratch, word, out=scratch)
        np.multiply(scratch, np.uint32(_KNUTH), out=word)
        np.add(word, np.uint32(i + 1), out=word)
    return low, high


def _twist(first: Words, second: Words, far: Words) -> Words:
    v = (first & np.uint32(0x80000000)) | (second & np.uint32(0x7FFFFFFF))
    return np.asarray(far ^ (v >> np.uint32(1)) ^ ((v & np.uint32(1)) * np.uint32(_TWIST)))


def _python_start() -> Words:
    """The 624 words every Python seed starts from: Knuth's recurrence from 19650218."""
    words = [19_650_218]
    for i in range(1, STATE_WORDS):
        words.append((_KNUTH * (words[-1] ^ words[-1] >> 30) + i) & 0xFFFFFFFF)
    return np.array(words, dtype=np.uint32)


def _mix(words: Words, i: int, factor: int, addend: Words | np.uint32, scratch: Words) -> int:
    """words[i] ← (words[i] ⊕ (words[i−1] ⊕ words[i−1] ≫ 30)·factor) + addend; the next i."""
    np.right_shift(words[i - 1], np.uint32(30), out=scratch)
    np.bitwise_xor(scratch, words[i - 1], out=scratch)
    np.multiply(scratch, np.uint32(factor), out=scratch)
    np.bitwise_xor(words[i], scratch, out=words[i])
    np.add(words[i], addend, out=words[i])
    if i + 1 < STATE_WORDS:
        return i + 1
    words[0] = words[STATE_WORDS - 1]
    return 1


# Polynomials over GF(2) as Python's integers: addition is ^, and x is a shift.


def _product(a: int, b: int) -> int:
    result = 0
    while b:
        lowest = b & -b
        result ^= a * lowest
        b ^= lowest
    return result


def _remainder(a: int, b: int) -> int:
    degree = b.bit_length()
    while a.bit_length() >= degree:
        a ^= b << (a.bit_length() - degree)
    return a


def _inverse(a: int, modulus: int) -> int:
    """The b with a·b = 1 modulo an irreducible polynomial, by Euclid's algorithm."""
    low, high, from_low, from_high = a, modulus, 1, 0
    while low != 1:
        shift = high.bit_length() - low.bit_length()
        if shift < 0:
            low, high, from_low, from_high = high, low, from_high, from_low
            continue
        high ^= low << shift
        from_high ^= from_low << shift
    return _remainder(from_low, modulus)


def _apply(polynomial: int, sequence: int) -> int:
    """Sequence t ↦ ⊕ p_i·b[t + i], b packed lowest bit first."""
    result = 0
    while polynomial:
        step = (polynomial & -polynomial).bit_length() - 1
        polynomial >>= step
        sequence >>= step
        result ^= sequence
        polynomial >>= 1
        sequence >>= 1
    return result
