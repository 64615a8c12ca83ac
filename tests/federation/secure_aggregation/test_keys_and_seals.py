"""Keys that both ends share and nobody else; packages that open once, in one place."""

from __future__ import annotations

import os
import pickle

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from federation.secure_aggregation import PackageError
from federation.secure_aggregation.key_agreement import (
    PairKeys,
    Position,
    agree,
    derive,
    expand,
    pairwise_seed,
)
from federation.secure_aggregation.sealing import OVERHEAD_BYTES, open_package, seal
from federation.secure_aggregation.session_secrets import SessionSecrets, TestOnlySecrets
from federation.secure_aggregation.statements import statement
from instahide.errors import IntegrityError, RefusedError

HERE = Position(3, 2, b"\x07")
ELSEWHERE = (Position(4, 2, b"\x07"), Position(3, 1, b"\x07"), Position(3, 2, b"\x03"))
KEYS = PairKeys(masking=bytes(range(32)), sealing=bytes(range(32, 64)))


def public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def test_the_derivation_is_the_one_of_the_standard() -> None:
    """RFC 5869, test case 1."""
    found = derive(
        bytes([0x0B] * 22),
        bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"),
        length=42,
        salt=bytes.fromhex("000102030405060708090a0b0c"),
    )
    assert found.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_both_ends_derive_the_same_keys_and_a_third_site_others() -> None:
    a, b, c = (X25519PrivateKey.generate() for _ in range(3))
    transcript = os.urandom(32)
    at_a = agree(a, "a", "b", public(b), transcript)
    assert at_a == agree(b, "b", "a", public(a), transcript)
    assert at_a.masking != at_a.sealing
    others = [
        agree(a, "a", "c", public(c), transcript),
        agree(a, "a", "b", public(b), os.urandom(32)),
        agree(a, "a", "c", public(b), transcript),
        agree(c, "a", "b", public(b), transcript),
    ]
    assert len({keys.masking for keys in [at_a, *others]}) == 5


def test_a_key_that_makes_the_secret_constant_is_refused() -> None:
    """RFC 7748, section 6.1: the point 0 gives zero for every private key."""
    with pytest.raises(IntegrityError, match="gives no secret"):
        agree(X25519PrivateKey.generate(), "a", "b", bytes(32), bytes(32))


def test_every_attempt_has_a_seed_of_its_own() -> None:
    seeds = {pairwise_seed(KEYS, position) for position in (HERE, *ELSEWHERE)}
    assert len(seeds) == 4


def test_the_halves_of_an_expansion_differ() -> None:
    halves = expand(os.urandom(32))
    assert len({*halves}) == 2
    assert all(len(half) == 32 for half in halves)


def test_a_package_opens_for_its_recipient_at_its_place() -> None:
    package = seal(KEYS, HERE, "a", "b", b"shares", salt=os.urandom(16))
    assert open_package(KEYS, HERE, "a", "b", package) == b"shares"
    assert len(package) == len(b"shares") + OVERHEAD_BYTES


def test_a_package_opens_nowhere_else() -> None:
    package = seal(KEYS, HERE, "a", "b", b"shares", salt=os.urandom(16))
    wrong = [
        *((KEYS, position, "a", "b", package) for position in ELSEWHERE),
        (KEYS, HERE, "b", "a", package),
        (KEYS, HERE, "a", "c", package),
        (PairKeys(KEYS.masking, KEYS.masking), HERE, "a", "b", package),
        (KEYS, HERE, "a", "b", package[:-1]),
        (KEYS, HERE, "a", "b", package[:10]),
        (KEYS, HERE, "a", "b", b""),
        *((KEYS, HERE, "a", "b", flipped(package, place)) for place in range(len(package))),
    ]
    for arguments in wrong:
        with pytest.raises(PackageError) as caught:
            open_package(*arguments)
        assert (caught.value.sender, caught.value.recipient) == arguments[2:4]


def test_one_content_sealed_twice_looks_different() -> None:
    secrets = SessionSecrets()
    packages = {seal(KEYS, HERE, "a", "b", b"same", salt=secrets.take(16))[16:] for _ in range(20)}
    assert len(packages) == 20


def test_statements_of_different_fields_never_coincide() -> None:
    told = [
        statement("x"),
        statement("x", ""),
        statement("x", "", ""),
        statement("x", "ab"),
        statement("x", "a", "b"),
        statement("x", b"ab", b""),
        statement("xa", "b"),
        statement("x", 1),
        statement("x", 256),
    ]
    assert len(set(told)) == len(told)


def test_secrets_are_fresh_and_stay_where_they_are() -> None:
    secrets = SessionSecrets()
    assert len({secrets.take(32) for _ in range(50)}) == 50
    assert "withheld" in repr(secrets)
    with pytest.raises(TypeError, match="holds secrets"):
        pickle.dumps(secrets)
    assert "masking" not in repr(KEYS)


def test_written_down_secrets_work_under_pytest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = TestOnlySecrets(b"abcdef")
    assert (tape.take(2), tape.take(4)) == (b"ab", b"cdef")
    with pytest.raises(RefusedError, match="has ended"):
        tape.take(1)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    with pytest.raises(RefusedError, match="outside a test"):
        TestOnlySecrets(b"")


def flipped(octets: bytes, place: int) -> bytes:
    return octets[:place] + bytes([octets[place] ^ 1]) + octets[place + 1 :]
