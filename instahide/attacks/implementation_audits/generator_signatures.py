"""How states of generators and keys look, as values with a name and as plain bytes.

An MT19937 state is 624 words of 32 bits. Two of its stored forms cannot be taken for anything else,
wherever they lie in a file: a *freshly seeded* one obeys Knuth's recurrence (:mod:`.mersenne_twister`),
and torch's ``get_rng_state`` (5,056 bytes) holds each word in eight bytes of which four are zero. Others
are told by length, type and name: 624 or 625 integers below 2³² that look random are a state of numpy or of
Python's ``random``; sixteen bytes named like a CUDA generator are Philox' seed and offset.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pickle_outline import Call

_KNUTH = np.uint32(1_812_433_253)
_STATE = 624
_PROBE = 64  # words between probes; a state of 624 words holds nine of them
_MAX_CANDIDATES = 1000
_STATE_BYTES = {2496, 2500, 2504, 2508, 2516, 4992, 5000, 5056}
_KEY_BYTES = {16, 24, 32, 48, 64}
_BIT_GENERATORS = {"MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64", "JSF64"}
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_GENERATOR_WORDS = {"rng", "generator", "prng", "mt19937", "philox", "pcg64"}
_KEY_WORDS = {"key", "secret", "password", "passwd", "passphrase", "token", "salt", "nonce", "mask"}
_NOT_SECRET = {
    "public",
    "pub",
    "sha256",
    "digest",
    "hash",
    "fingerprint",
    "id",
    "name",
    "type",
    "count",
    "path",
}
_HEX = re.compile(r"(?:0x)?[0-9a-fA-F]{32,256}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{22,344}={0,2}")


@dataclass(frozen=True)
class Finding:
    """Something in a file from which secrets of an encoder could follow.

    Args:
        kind: ``state`` of a generator, ``key``, or ``seed``.
        where: file, member and name.
        what: in words; never the value itself.
    """

    kind: str
    where: str
    what: str


def judge_value(where: str, name: str, value: Any) -> Finding | None:
    """What a named value looks like; ``None`` if harmless."""
    words = {word.lower() for word in _WORDS.findall(name)}
    if isinstance(value, str) and value in _BIT_GENERATORS:
        return Finding("state", where, f"the state of a numpy generator ({value}) is stored")
    if isinstance(value, Call) and "state" in words and words & _GENERATOR_WORDS:
        return Finding("state", where, "an object named as a generator's state is stored")
    numbers = _as_numbers(value)
    if numbers is not None:
        return _judge_numbers(where, words, numbers)
    if isinstance(value, bytes | bytearray):
        return _judge_bytes(where, words, bytes(value))
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int) and "seed" in words | _compound(name):
        return Finding("seed", where, "a seed is stored")
    if isinstance(value, str) and words & _KEY_WORDS and not words & _NOT_SECRET and _is_secret(words, value):
        return Finding("key", where, "a key, token or password is stored as text")
    if isinstance(value, str) and "seed" in words and value.strip().lstrip("-").isdigit():
        return Finding("seed", where, "a seed is stored")
    return None


def scan_bytes(data: bytes | memoryview | NDArray[np.uint8]) -> list[tuple[str, int, str]]:
    """(kind, offset, words) of private keys and MT19937 states in any bytes."""
    raw = np.frombuffer(data, dtype=np.uint8)
    found = [("key", match.start(), "a private key in PEM form") for match in _PRIVATE_KEY.finditer(raw.data)]
    for phase in range(4):
        words = raw[phase : phase + (len(raw) - phase) // 4 * 4].view("<u4")
        found += [("state", phase + 4 * at, text) for at, text in _states_in_words(words)]
    return found


def _states_in_words(words: NDArray[np.uint32]) -> list[tuple[int, str]]:
    if len(words) < _STATE:
        return []
    return [(at, "an MT19937 state, freshly seeded") for at in _seeded_states(words)] + [
        (at, "an MT19937 state in 64-bit words, as torch stores it") for at in _wide_states(words)
    ]


def _seeded_states(words: NDArray[np.uint32]) -> list[int]:
    """Where 624 words obey s[i] = 1812433253·(s[i−1] ⊕ (s[i−1] ≫ 30)) + i."""
    at = np.arange(0, len(words) - 2, _PROBE)
    first, second = _knuth_rest(words, at), _knuth_rest(words, at + 1)
    found = []
    for probe in at[(second - first == 1) & (first < _STATE) & (first > 0)]:
        start = int(probe) + 1 - int(_knuth_rest(words, probe))  # the rest at word i − 1 is i
        if start < 0 or start + _STATE > len(words) or start in found:
            continue
        inside = np.arange(start, start + _STATE - 1)
        if (_knuth_rest(words, inside) == np.arange(1, _STATE)).all():
            found.append(start)
    return found


def _knuth_rest(words: NDArray[np.uint32], at: Any) -> NDArray[np.uint32]:
    """s[i + 1] − 1812433253·(s[i] ⊕ (s[i] ≫ 30)) at i = ``at``."""
    here = np.atleast_1d(words[at])
    rest = np.atleast_1d(words[np.asarray(at) + 1]) - _KNUTH * (here ^ (here >> np.uint32(30)))
    return np.asarray(rest if np.ndim(at) else rest[0])


def _wide_states(words: NDArray[np.uint32]) -> list[int]:
    """Where 624 random words alternate with zeros."""
    found: set[int] = set()
    for parity in (0, 1):
        low, high = words[parity::2], words[parity + 1 :: 2]
        low = low[: len(high)]
        # A state spans nine probes; a random word is below 2²⁴ with chance 1/256, a count nearly always.
        probes = (high[::_PROBE] == 0) & (low[::_PROBE] >= 1 << 24)
        if len(probes) < 9:
            continue
        for probe in np.flatnonzero(np.convolve(probes, np.ones(9), mode="valid") >= 8)[:_MAX_CANDIDATES]:
            middle = int(probe + 4) * _PROBE
            first, last = _run_around(high, middle)
            start = _state_within(low[first:last])
            if start is not None:
                found.add(2 * (first + start) + parity)
    return sorted(found)


def _run_around(high: NDArray[Any], middle: int) -> tuple[int, int]:
    """First and one past last place of the zeros around ``middle``, no further than a state away."""
    left, right = max(0, middle - _STATE), min(len(high), middle + _STATE)
    ends = np.flatnonzero(high[left:right] != 0) + left
    before, after = ends[ends < middle], ends[ends > middle]
    return int(before[-1]) + 1 if before.size else left, int(after[0]) if after.size else right


def _state_within(low: NDArray[np.uint32]) -> int | None:
    """Where 624 of these words look like a state; the words around one are few (a seed, a counter)."""
    for start in range(min(len(low) - _STATE + 1, 8)):
        if looks_like_state(low[start : start + _STATE]):
            return start
    return None


def looks_like_state(words: NDArray[Any]) -> bool:
    """Whether 624 numbers could be random 32-bit words: in range, nearly all different, bits balanced.

    624 fair bits have 312 ± 12.5 ones; ± 100 is eight standard deviations.
    """
    if len(words) < _STATE or words.min() < 0 or words.max() >= 2**32:
        return False
    state = words[:_STATE].astype(np.uint64)
    if len(np.unique(state)) < _STATE - 4:
        return False
    ones = (state[1:, None] >> np.arange(32, dtype=np.uint64) & np.uint64(1)).sum(axis=0)
    return bool((np.abs(ones.astype(np.int64) - _STATE // 2) < 100).all())


def _as_numbers(value: Any) -> NDArray[Any] | None:
    if isinstance(value, np.ndarray):
        return value if np.issubdtype(value.dtype, np.integer) else None
    if isinstance(value, list | tuple) and len(value) >= 2 and all(type(item) is int for item in value):
        try:
            return np.array(value, dtype=np.int64)
        except OverflowError:
            return None
    return None


def _judge_numbers(where: str, words: set[str], numbers: NDArray[Any]) -> Finding | None:
    flat = numbers.ravel()
    if flat.size in (624, 625) and looks_like_state(flat):
        return Finding("state", where, "an MT19937 state: 624 random 32-bit words")
    if flat.size == 16 and flat.min() >= 0 and flat.max() < 256 and words & {"cuda", *_GENERATOR_WORDS}:
        return Finding("state", where, "the seed and offset of a CUDA Philox generator")
    if flat.size in _STATE_BYTES and flat.min() >= 0 and flat.max() < 256:
        return _judge_bytes(where, words, flat.astype(np.uint8).tobytes())
    if words & {"cuda", *_GENERATOR_WORDS} and "state" in words and flat.size >= 2:
        return Finding("state", where, "numbers named as a generator's state are stored")
    if "seed" in words and flat.size <= 64:
        return Finding("seed", where, "seeds are stored")
    as_bytes = flat.dtype.itemsize == 1 or (flat.min() >= 0 and 64 < flat.max() < 256)
    if words & _KEY_WORDS and not words & _NOT_SECRET and flat.size in _KEY_BYTES and as_bytes:
        return Finding("key", where, f"{flat.size} bytes named as a key are stored")
    return None


def _judge_bytes(where: str, words: set[str], value: bytes) -> Finding | None:
    for kind, _, text in scan_bytes(value):
        return Finding(kind, where, text)
    if len(value) in _STATE_BYTES and len(value) < 4992:
        for start in (0, len(value) % 4, len(value) - 2496):
            part = np.frombuffer(value[start : start + 2496], dtype="<u4") if start >= 0 else np.empty(0)
            if len(part) == _STATE and looks_like_state(part):
                return Finding("state", where, "an MT19937 state: 624 random 32-bit words")
    if words & {"cuda", *_GENERATOR_WORDS} and len(value) >= 8:
        return Finding("state", where, "bytes named as a generator's state are stored")
    if words & (_KEY_WORDS | {"seed"}) and not words & _NOT_SECRET and len(value) in _KEY_BYTES:
        return Finding("key", where, f"{len(value)} bytes named as a key are stored")
    return None


def _compound(name: str) -> set[str]:
    """Words run together, as in ``maskseed``."""
    return {"seed"} if name.lower().endswith("seed") else set()


def _is_secret(words: set[str], value: str) -> bool:
    if words & {"password", "passwd", "passphrase"}:
        return bool(value)
    return bool(_HEX.fullmatch(value)) or _looks_random(value)


def _looks_random(text: str) -> bool:
    """Base64-like, with digits and both cases: no words of a language."""
    kinds = (any(c.isdigit() for c in text), any(c.islower() for c in text), any(c.isupper() for c in text))
    return bool(_BASE64.fullmatch(text)) and all(kinds)
