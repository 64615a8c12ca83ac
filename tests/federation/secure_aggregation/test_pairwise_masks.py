"""Masks are the cipher's key stream, they cancel exactly, and what they cover is uniform."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from federation.secure_aggregation.pairwise_masks import (
    CHUNK_BYTES,
    add_masks,
    from_wire,
    ring_dtype,
    wire_bytes,
)
from instahide.errors import InvalidInputError

from .parties import parties


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_mask_is_the_key_stream_read_as_words_across_pieces(ring_bits: int, extra: int) -> None:
    length = CHUNK_BYTES * 8 // ring_bits + extra
    key = os.urandom(32)
    for stream in (0, 1):
        nonce = bytes(4) + stream.to_bytes(12, "little")
        cipher = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor()
        expected = np.frombuffer(cipher.update(bytes(length * ring_bits // 8)), dtype=f"<u{ring_bits // 8}")
        target = np.zeros(length, dtype=ring_dtype(ring_bits))
        add_masks(target, [(key, 1)], stream=stream)
        assert np.array_equal(target, expected)


def test_the_key_stream_is_the_one_of_the_standard() -> None:
    """RFC 8439, appendix A.1, vector 1: key 0, nonce 0, counter 0."""
    target = np.zeros(4, dtype=np.uint64)
    add_masks(target, [(bytes(32), 1)], stream=0)
    assert target.tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
def test_what_is_added_comes_off_again(ring_bits: int) -> None:
    keys = [os.urandom(32) for _ in range(5)]
    vector = np.frombuffer(os.urandom(1000 * ring_bits // 8), dtype=ring_dtype(ring_bits)).copy()
    masked = vector.copy()
    add_masks(masked, [(key, sign) for key, sign in zip(keys, (1, -1, 1, 1, -1), strict=True)], stream=0)
    assert not np.array_equal(masked, vector)
    add_masks(masked, [(key, -sign) for key, sign in zip(keys, (1, -1, 1, 1, -1), strict=True)], stream=0)
    assert np.array_equal(masked, vector)


def test_vectors_travel_as_plain_words() -> None:
    vector = np.arange(5, dtype=np.uint16)
    assert bytes(wire_bytes(vector)) == b"\0\0\1\0\2\0\3\0\4\0"
    assert np.array_equal(from_wire(wire_bytes(vector), 16), vector)
    with pytest.raises(InvalidInputError, match="32-bit words"):
        from_wire(b"12345", 32)


def test_masks_go_only_on_contiguous_ring_vectors() -> None:
    for wrong in (np.zeros(4), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]):
        with pytest.raises(InvalidInputError, match="contiguous unsigned"):
            add_masks(wrong, [(bytes(32), 1)], stream=0)


@pytest.mark.statistical
def test_a_masked_constant_is_uniform_on_the_whole_ring_the_top_residue_included() -> None:
    """One site's masked vector of zeros, 16-bit ring, 2^20 entries, the other sites' masks unknown.

    Over the 65,536 residues, 16 expected in each: chi-square has 65,535 degrees of freedom, mean 65,535
    and deviation sqrt(2 * 65,535) = 362. Six deviations: false alarm below 2e-9 (normal limit), and a
    residue that never occurs adds 16 only, so the extremes are asked for by themselves: each is absent with
    probability e^-16 = 1.1e-7.
    """
    group = parties(3, vector_length=1 << 20, ring_bits=16)
    request = group.server.start_round(1)
    zeros, channels = np.zeros(1 << 20, np.uint16), np.zeros(3, np.uint64)
    report = group.sites[group.names[1]].report(request, zeros, channels)
    counts = np.bincount(from_wire(report.vector, 16), minlength=65536)
    chi_square = float(((counts - 16) ** 2 / 16).sum())
    assert abs(chi_square - 65535) < 6 * 362
    assert counts[0] > 0
    assert counts[65535] > 0


@pytest.mark.statistical
def test_a_masked_vector_has_no_trace_of_what_it_hides() -> None:
    """Bits of y and x agree in half of 2^22 places: deviation 1024; six of them, false alarm below 2e-9."""
    group = parties(3, vector_length=1 << 17)
    request = group.server.start_round(1)
    report = group.report(group.names[0], request)
    x = group.vectors[group.names[0]].view(np.uint8)
    agree = np.unpackbits(~(np.frombuffer(report.vector, np.uint8) ^ x)).sum()
    assert abs(int(agree) - (1 << 21)) < 6 * 1024
