"""The source of secrets: uniform, never repeated, never seeded, never copied."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

import instahide.randomness as randomness_module
from instahide.errors import RefusedError
from instahide.randomness import BLOCK_BYTES, PURPOSES, Keystream, Randomness, TestOnlyRandomness

KEY = bytes(range(32))


def test_a_read_is_the_chacha20_key_stream_of_its_number() -> None:
    stream = Keystream(KEY)
    for number in range(3):
        nonce = bytes(4) + number.to_bytes(12, "little")
        expected = Cipher(algorithms.ChaCha20(KEY, nonce), mode=None).encryptor().update(bytes(100))
        assert stream.read(100).tobytes() == expected


def test_the_key_stream_is_the_one_of_the_standard() -> None:
    """RFC 8439, appendix A.1, vector 1: key 0, nonce 0, counter 0."""
    expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert Keystream(bytes(32)).read(32).tobytes().hex() == expected


def test_a_read_longer_than_a_megabyte_does_not_repeat_itself() -> None:
    data = Keystream(KEY).read(3 << 20)
    parts = data.reshape(3, -1)
    assert not np.array_equal(parts[0], parts[1])
    assert not np.array_equal(parts[1], parts[2])


def test_records_of_a_read_start_on_blocks_of_their_own() -> None:
    records = Keystream(KEY).read_records(5, 65)
    assert records.shape == (5, 2 * BLOCK_BYTES)
    assert records.tobytes() == Keystream(KEY).read(5 * 128).tobytes()


def test_no_two_streams_share_a_key() -> None:
    source = Randomness()
    keys = [source.stream(purpose)._key for purpose in PURPOSES for _ in range(10)]
    assert len(set(keys)) == len(keys)


def test_even_without_fresh_salt_purpose_and_call_number_separate_keys() -> None:
    source = TestOnlyRandomness(1)
    keys = [source.stream(purpose)._key for purpose in PURPOSES for _ in range(10)]
    assert len(set(keys)) == len(keys)


def test_restored_memory_does_not_bring_old_keys_back() -> None:
    """As after a virtual machine's snapshot: same root, same counter, other keys."""
    source = Randomness()
    state = (source._root, source._calls)
    first = source.stream("signs")._key
    source._root, source._calls = state
    assert source.stream("signs")._key != first


def test_two_sources_differ() -> None:
    assert Randomness()._root != Randomness()._root


def test_an_unknown_purpose_is_refused() -> None:
    with pytest.raises(RefusedError, match="weights"):
        Randomness().stream("weights")


def test_a_read_beyond_the_block_counter_is_refused() -> None:
    with pytest.raises(RefusedError, match="one nonce"):
        Keystream(KEY).read(2**32 * BLOCK_BYTES + 1)


def test_a_key_is_refused_once_its_nonces_are_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomness_module, "MAX_READS", 2)
    stream = Keystream(KEY)
    stream.read(1)
    stream.read(1)
    with pytest.raises(RefusedError, match="read number 2"):
        stream.read(1)


def test_secrets_do_not_show_and_cannot_be_copied() -> None:
    source = Randomness()
    for secret, key in ((source, source._root), (source.stream("signs"), source.stream("signs")._key)):
        assert "withheld" in repr(secret)
        assert key.hex() not in f"{secret} {secret!r}"
        for leak in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="secrets"):
                leak(secret)


def test_a_seed_is_refused() -> None:
    with pytest.raises(TypeError):
        Randomness(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Randomness(seed=1)  # type: ignore[call-arg]


def test_seeded_randomness_is_refused_outside_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    with pytest.raises(RefusedError, match="outside a test"):
        TestOnlyRandomness(1)


def test_seeded_randomness_repeats_itself_and_differs_by_seed() -> None:
    draws = [TestOnlyRandomness(seed).stream("signs").read(32).tobytes() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_draws_other_secrets_than_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's process number is all it knows of the fork; here it is changed in its place."""
    source = Randomness()
    open_stream = source.stream("signs")
    root = source._root
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RefusedError, match="fork"):
        open_stream.read(1)
    source.stream("signs").read(1)
    assert source._root != root


@pytest.mark.statistical
def test_integers_are_uniform_where_a_modulo_would_not_be() -> None:
    """Below 3·2^61 a plain modulo of 64-bit words gives the lowest third of values half again as often.

    n = 60,000 draws; share of the lowest third is 1/3 ± sqrt(2/9/n) = 0.0019; six sigma is 0.0116
    (false alarm 2e-9). The biased share would be 0.5.
    """
    upper = 3 * 2**61
    draws = Randomness().stream("partners").integers(upper, 60_000)
    assert abs((draws < 2**61).mean() - 1 / 3) < 0.0116
    assert draws.min() >= 0
    assert draws.max() < upper


@pytest.mark.statistical
def test_small_integers_are_uniform() -> None:
    """Chi-squared of 70,000 draws below 7: 6 degrees of freedom, P(> 45) = 5e-8."""
    counts = np.bincount(Randomness().stream("partners").integers(7, 70_000), minlength=7)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 45


@pytest.mark.statistical
def test_uniforms_have_the_mean_and_spread_of_uniforms() -> None:
    """n = 100,000: mean 1/2 ± 0.0009, mean square 1/3 ± 0.00094; six sigma each (2e-9)."""
    draws = Randomness().stream("coefficients").uniforms(100_000)
    assert abs(draws.mean() - 0.5) < 0.0055
    assert abs((draws**2).mean() - 1 / 3) < 0.0057
    assert 0 < draws.min() < draws.max() < 1


def test_uniforms_never_reach_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Keystream(KEY)
    extremes = np.array([0, 2**64 - 1], dtype=np.uint64)
    monkeypatch.setattr(stream, "words", lambda count: extremes)
    assert stream.uniforms(2).tolist() == [2.0**-53, 1 - 2.0**-53]


@pytest.mark.statistical
def test_permutations_of_four_are_all_equally_likely() -> None:
    """24 orders, 24,000 draws: chi-squared with 23 degrees of freedom, P(> 80) = 3e-8."""
    stream = Randomness().stream("partners")
    orders = [tuple(stream.permutation(4).tolist()) for _ in range(24_000)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 80


def test_a_tie_among_keys_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Keystream(KEY)
    draws = iter([np.array([5, 5, 1], dtype=np.uint64), np.array([2, 3, 1], dtype=np.uint64)])
    monkeypatch.setattr(stream, "words", lambda count: next(draws))
    assert stream.permutation(3).tolist() == [2, 0, 1]
