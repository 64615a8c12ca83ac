"""A second program for secure aggregation, from its protocol page: writes secure_aggregation.json.

    python tests/vectors/make_secure_aggregation.py            check against the standards, then write
    python tests/vectors/make_secure_aggregation.py --check    check, and compare with the file

Whole numbers, hashlib and hmac only: nothing of the toolkit, no numpy, no cryptography library. X25519
(RFC 7748), Ed25519 (RFC 8032), HKDF (RFC 5869), ChaCha20 and Poly1305 (RFC 8439) and the field of
FIPS 197 are written out here, slowly and plainly, and held against the standards' own examples first.

A case is one round of four sites, threshold three: site "d" sends its advert and then is missing. What
would be random comes from a tape of each site, consumed in this order: X25519 key (32 bytes); for a report:
self-mask seed (32), share coefficients (t - 1, participants, 32), a salt (16) for each other participant.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("secure_aggregation.json")
P = 2**255 - 19


# --- X25519, RFC 7748 section 5 ------------------------------------------------------------------


def x25519(scalar: bytes, point: bytes) -> bytes:
    k = bytearray(scalar)
    k[0] &= 248
    k[31] = (k[31] & 127) | 64
    number, u = int.from_bytes(k, "little"), int.from_bytes(point, "little") % 2**255
    x1, x2, z2, x3, z3, swap = u, 1, 0, u, 1, 0
    for t in reversed(range(255)):
        bit = number >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % P, b * b % P, d * a % P, c * b % P
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


BASE_POINT = (9).to_bytes(32, "little")


# --- Ed25519, RFC 8032 section 5.1 ---------------------------------------------------------------

ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
Point = tuple[int, int]


def edwards_add(one: Point, two: Point) -> Point:
    (x1, y1), (x2, y2) = one, two
    product = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P)
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, P)
    return x % P, y % P


def edwards_multiply(number: int, point: Point) -> Point:
    result = (0, 1)
    while number:
        if number & 1:
            result = edwards_add(result, point)
        point = edwards_add(point, point)
        number >>= 1
    return result


def edwards_base() -> Point:
    y = 4 * pow(5, P - 2, P) % P
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    return (P - x if x & 1 else x), y


def edwards_bytes(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def ed25519_halves(secret: bytes) -> tuple[int, bytes]:
    digest = bytearray(hashlib.sha512(secret).digest())
    digest[0] &= 248
    digest[31] = (digest[31] & 127) | 64
    return int.from_bytes(digest[:32], "little"), bytes(digest[32:])


def ed25519_public(secret: bytes) -> bytes:
    return edwards_bytes(edwards_multiply(ed25519_halves(secret)[0], edwards_base()))


def ed25519_sign(secret: bytes, message: bytes) -> bytes:
    scalar, prefix = ed25519_halves(secret)
    public = ed25519_public(secret)
    r = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % ORDER
    commitment = edwards_bytes(edwards_multiply(r, edwards_base()))
    k = int.from_bytes(hashlib.sha512(commitment + public + message).digest(), "little")
    return commitment + ((r + k * scalar) % ORDER).to_bytes(32, "little")


# --- HKDF-SHA256, RFC 5869 -----------------------------------------------------------------------


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    extracted = hmac.new(salt or bytes(32), key, hashlib.sha256).digest()
    output, block, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.new(extracted, block + info + bytes([counter]), hashlib.sha256).digest()
        output, counter = output + block, counter + 1
    return output[:length]


# --- ChaCha20 and Poly1305, RFC 8439 -------------------------------------------------------------


def quarter_round(s: list[int], a: int, b: int, c: int, d: int) -> None:
    for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[x] = (s[x] + s[y]) % 2**32
        mixed = s[z] ^ s[x]
        s[z] = (mixed << bits | mixed >> (32 - bits)) % 2**32


def chacha20_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    octets = b"expand 32-byte k" + key + counter.to_bytes(4, "little") + nonce
    state = [int.from_bytes(octets[i : i + 4], "little") for i in range(0, 64, 4)]
    s = list(state)
    for _ in range(10):
        for i in range(4):
            quarter_round(s, i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter_round(s, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return b"".join(((x + y) % 2**32).to_bytes(4, "little") for x, y in zip(s, state, strict=True))


def key_stream(key: bytes, nonce: bytes, length: int, first_block: int = 0) -> bytes:
    blocks = range(first_block, first_block + -(-length // 64))
    return b"".join(chacha20_block(key, counter, nonce) for counter in blocks)[:length]


def xor(one: bytes, two: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, two, strict=True))


def poly1305(key: bytes, message: bytes) -> bytes:
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for i in range(0, len(message), 16):
        total = (total + int.from_bytes(message[i : i + 16] + b"\1", "little")) * r % (2**130 - 5)
    return ((total + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


def chacha20_poly1305(key: bytes, nonce: bytes, text: bytes, associated: bytes) -> bytes:
    sealed = xor(text, key_stream(key, nonce, len(text), first_block=1))
    padded = [part + bytes(-len(part) % 16) for part in (associated, sealed)]
    lengths = b"".join(len(part).to_bytes(8, "little") for part in (associated, sealed))
    return sealed + poly1305(chacha20_block(key, 0, nonce)[:32], b"".join(padded) + lengths)


# --- Shamir over GF(2^8), FIPS 197 section 4.2 ---------------------------------------------------


def field_product(a: int, b: int) -> int:
    result = 0
    for bit in range(8):
        if b >> bit & 1:
            result ^= a << bit
    for bit in reversed(range(8, 15)):
        if result >> bit & 1:
            result ^= 0x11B << (bit - 8)
    return result


def share(secret: bytes, coefficients: Sequence[bytes], point: int) -> bytes:
    octets = []
    for place, byte in enumerate(secret):
        value, power = byte, 1
        for coefficient in coefficients:
            power = field_product(power, point)
            value ^= field_product(coefficient[place], power)
        octets.append(value)
    return bytes(octets)


# --- the protocol --------------------------------------------------------------------------------


def statement(label: str, *fields: bytes | str | int) -> bytes:
    result = b"instahide-fl/secure-aggregation/1/" + label.encode() + b"\0"
    for field in fields:
        octets = field.to_bytes(8, "big") if isinstance(field, int) else field
        octets = octets.encode() if isinstance(octets, str) else octets
        result += len(octets).to_bytes(4, "big") + octets
    return result


def statement_hash(label: str, *fields: bytes | str | int) -> bytes:
    return hashlib.sha256(statement(label, *fields)).digest()


def message(fields: dict[str, Any]) -> bytes:
    result = b"IHS1"
    for key in sorted(fields):
        value = fields[key]
        result += bytes([len(key)]) + key.encode()
        if isinstance(value, int):
            result += b"i" + value.to_bytes(8, "big")
        elif isinstance(value, str):
            result += b"s" + len(value).to_bytes(4, "big") + value.encode()
        elif isinstance(value, bytes):
            result += b"b" + len(value).to_bytes(8, "big") + value
        else:
            result += b"l" + len(value).to_bytes(4, "big")
            result += b"".join(len(item).to_bytes(4, "big") + item for item in value)
    return result


def tape(label: str, length: int) -> bytes:
    """Bytes for a case: no secret, only long and irregular."""
    blocks = range(-(-length // 32))
    return b"".join(hashlib.sha256(f"{label}/{i}".encode()).digest() for i in blocks)[:length]


def words(octets: bytes, bits: int) -> list[int]:
    size = bits // 8
    return [int.from_bytes(octets[i : i + size], "little") for i in range(0, len(octets), size)]


def octets_of(numbers: Sequence[int], bits: int) -> bytes:
    return b"".join((number % 2**bits).to_bytes(bits // 8, "little") for number in numbers)


def bit_set(names: Sequence[str], chosen: Sequence[str]) -> bytes:
    number = sum(1 << names.index(name) for name in chosen)
    return number.to_bytes(-(-len(names) // 8), "little")


def round_case(
    ring_bits: int, length: int, num_channels: int, server_round: int, attempt: int, confirm: bool
) -> dict[str, Any]:
    names, missing, threshold = ["a", "b", "c", "d"], ["d"], 3
    survivors = [name for name in names if name not in missing]
    label = f"case/{ring_bits}"
    run_name, settings, session = "known-answers", tape(label + "/settings", 32), tape(label + "/session", 16)
    secret = {name: tape(f"{label}/{name}/identity", 32) for name in names}
    identity = {name: ed25519_public(secret[name]) for name in names}
    parameters = statement_hash(
        "parameters", len(names), threshold, threshold, length, num_channels, ring_bits, int(confirm)
    )
    listed = [part for name in names for part in (name, identity[name])]
    roster = statement_hash("roster", 1, run_name, parameters, settings, len(names), *listed)

    # Set-up.
    tape_bytes = 32 + 32 + (threshold - 1) * len(names) * 32 + 16 * (len(names) - 1)
    tapes = {name: tape(f"{label}/{name}/tape", tape_bytes) for name in names}
    private = {name: tapes[name][:32] for name in names}
    public = {name: x25519(private[name], BASE_POINT) for name in names}
    adverts, signatures = {}, {}
    for name in names:
        signed = statement("advert", run_name, roster, session, name, public[name])
        signatures[name] = ed25519_sign(secret[name], signed)
        fields = {
            "session-id": session,
            "site": name,
            "public-key": public[name],
            "signature": signatures[name],
        }
        adverts[name] = message(fields)
    ordered = [part for name in names for part in (name, public[name])]
    transcript = statement_hash("transcript", roster, session, len(names), *ordered)

    def pair_keys(one: str, two: str) -> tuple[bytes, bytes]:
        agreed = x25519(private[one], public[two])
        keys = hkdf(agreed, transcript, statement("pair", *sorted((one, two))), 64)
        return keys[:32], keys[32:]

    # A round.
    asked = bit_set(names, names)
    place = (server_round, attempt, asked)
    request = {
        "session-id": session,
        "server-round": server_round,
        "attempt": attempt,
        "participants": asked,
        "cohort": asked,
        "adverts": b"".join(public[name] + signatures[name] for name in names),
        "statements": [],
    }
    vectors = {
        name: words(tape(f"{label}/{name}/vector", length * ring_bits // 8), ring_bits) for name in names
    }
    channels = {name: words(tape(f"{label}/{name}/channels", 8 * num_channels), 64) for name in names}
    reports: dict[str, bytes] = {}
    dealt: dict[tuple[str, str], dict[str, bytes]] = {}  # (dealer, recipient) -> about -> share
    packages: dict[tuple[str, str], bytes] = {}
    for own in survivors:
        remaining = tapes[own][32:]
        self_seed, remaining = remaining[:32], remaining[32:]
        seeds = {
            name: self_seed
            if name == own
            else hkdf(pair_keys(own, name)[0], b"", statement("pairwise-mask", *place), 32)
            for name in names
        }
        expanded = {name: hkdf(seeds[name], b"", statement("expand"), 64) for name in names}
        masked = {}
        for stream, (values, bits) in enumerate(((vectors[own], ring_bits), (channels[own], 64))):
            total = list(values)
            for name in names:
                nonce = stream.to_bytes(12, "little")
                mask = words(key_stream(expanded[name][:32], nonce, len(total) * bits // 8), bits)
                sign = 1 if name >= own else -1
                total = [x + sign * m for x, m in zip(total, mask, strict=True)]
            masked[stream] = octets_of(total, bits)
        coefficients = {name: [] for name in names}  # type: dict[str, list[bytes]]
        for _ in range(threshold - 1):
            for name in names:
                coefficients[name].append(remaining[:32])
                remaining = remaining[32:]
        for recipient in names:
            point = names.index(recipient) + 1
            dealt[own, recipient] = {name: share(seeds[name], coefficients[name], point) for name in names}
            if recipient == own:
                continue
            salt, remaining = remaining[:16], remaining[16:]
            info = statement("package", *place, own, recipient)
            key = hkdf(pair_keys(own, recipient)[1], salt, info, 32)
            content = b"".join(dealt[own, recipient][name] for name in names)
            packages[own, recipient] = salt + chacha20_poly1305(key, bytes(12), content, info)
        reports[own] = message(
            {
                "session-id": session,
                "site": own,
                "server-round": server_round,
                "attempt": attempt,
                "participants": asked,
                "vector": masked[0],
                "channels": masked[1],
                "packages": [packages[own, name] for name in names if name != own],
                "check-values": b"".join(expanded[name][32:] for name in names),
            }
        )
    left = bit_set(names, survivors)
    common = {
        "session-id": session,
        "server-round": server_round,
        "attempt": attempt,
        "survivors": left,
    }
    signed_sets = {
        own: ed25519_sign(secret[own], statement("survivors", transcript, *place, left)) for own in survivors
    }
    numbers = server_round.to_bytes(8, "big") + attempt.to_bytes(8, "big")
    statements = {
        own: bytes([names.index(own) + 1]) + numbers + asked + left + signed_sets[own] for own in survivors
    }
    confirmations = {
        own: message({**common, "site": own, "signature": signed_sets[own]}) for own in survivors
    }
    requests, answers = {}, {}
    for own in survivors:
        received = [packages[name, own] for name in survivors if name != own]
        seen = list(statements.values()) if confirm else []
        requests[own] = message({**common, "packages": received, "confirmations": seen})
        shares = b"".join(dealt[dealer, own][name] for dealer in survivors for name in (dealer, *missing))
        answers[own] = message({**common, "site": own, "shares": shares, "signature": signed_sets[own]})
    total = [sum(vectors[name][i] for name in survivors) for i in range(length)]
    beside = [sum(channels[name][i] for name in survivors) for i in range(num_channels)]
    return {
        "run-name": run_name,
        "ring-bits": ring_bits,
        "threshold": threshold,
        "confirm-survivors": confirm,
        "settings-sha256": settings,
        "session-id": session,
        "identity-private-keys": secret,
        "tapes": tapes,
        "vectors": {name: octets_of(vectors[name], ring_bits) for name in names},
        "channels": {name: octets_of(channels[name], 64) for name in names},
        "server-round": server_round,
        "attempt": attempt,
        "roster-sha256": roster,
        "adverts": adverts,
        "transcript-sha256": transcript,
        "report-request": message(request),
        "reports": reports,
        "confirm-request": message(common),
        "confirmations": confirmations,
        "unmask-requests": requests,
        "unmask-answers": answers,
        "statements": statements,
        "sum": octets_of(total, ring_bits),
        "channel-sum": octets_of(beside, 64),
    }


def plan_case(ring_bits: int, num_sites: int, length: int, bound: float, max_examples: int) -> dict[str, Any]:
    """The published test vector of a plan with one mean, "train-loss", weighted, largest 100."""
    levels = min(2**40, (2 ** (ring_bits - 1) - 1) // num_sites)
    step = bound / levels
    mean = ("train-loss", "num-examples", (100.0).hex())
    numbers = (length, num_sites, max_examples, ring_bits, 0)
    floats = (bound.hex(), (0.0).hex(), (0.0).hex())
    plan = statement_hash("quantisation", *numbers, *floats, 1, 1, "num-examples", *mean)
    count = max(1, max_examples // 3)
    factor = count / max_examples / step
    encoded = [
        math.floor(((40503 * k) % 65536 - 32768) / 32768 * bound * factor + 0.5)
        for k in range(min(length, 4096))
    ]
    vector = octets_of(encoded, ring_bits)
    channels = octets_of([1, count, round(count * 50.0 * 2**20)], 64)
    return {
        "ring-bits": ring_bits,
        "num-sites": num_sites,
        "vector-length": length,
        "coordinate-bound": bound.hex(),
        "max-examples": max_examples,
        "plan-sha256": plan,
        "test-vector-sha256": hashlib.sha256(plan + vector + channels).digest(),
    }


def check_against_the_standards() -> None:
    """Examples of RFC 7748 5.2, 8032 7.1, 5869 A.1, 8439 2.3.2, 2.5.2 and 2.8.2, and FIPS 197 4.2."""
    of = bytes.fromhex
    scalar = of("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = of("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    expect(x25519(scalar, point), "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
    secret = of("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    expect(ed25519_public(secret), "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    expect(
        ed25519_sign(secret, of("72")),
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    )
    expect(
        hkdf(of("0b" * 22), of("000102030405060708090a0b0c"), of("f0f1f2f3f4f5f6f7f8f9"), 42),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    )
    key = bytes(range(32))
    expect(
        chacha20_block(key, 1, of("000000090000004a00000000")),
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
    )
    expect(
        poly1305(
            of("85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b"),
            b"Cryptographic Forum Research Group",
        ),
        "a8061dc1305136c6c22b8baf0c0127a9",
    )
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    sealed = chacha20_poly1305(
        bytes(range(0x80, 0xA0)), of("070000004041424344454647"), text, of("50515253c0c1c2c3c4c5c6c7")
    )
    expect(sealed[:16] + sealed[-16:], "d31a8d34648e60db7b86afbc53ef7ec21ae10b594f09e26a7e902ecbd0600691")
    expect(bytes([field_product(0x57, 0x83), field_product(0x57, 0x13)]), "c1fe")


def expect(found: bytes, expected: str) -> None:
    if found.hex() != expected:
        raise SystemExit(f"this program disagrees with a standard: {found.hex()} is not {expected}")


def document() -> dict[str, Any]:
    """Everything that is written to the file, bytes as hexadecimal text."""
    check_against_the_standards()
    rounds = [
        round_case(16, 70, 0, 1, 1, confirm=True),
        round_case(32, 37, 3, 7, 2, confirm=False),
        round_case(64, 9, 1, 2**31, 65_535, confirm=True),
    ]
    plans = [
        plan_case(16, 255, 10_000, 0.125, 500),
        plan_case(32, 5, 100, 1.0, 10_000),
        plan_case(64, 3, 4097, 3.7, 7),
    ]
    return readable({"rounds": rounds, "plans": plans})


def readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    return [readable(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description="known answers for secure aggregation")
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    text = json.dumps(document(), indent=1) + "\n"
    if not parser.parse_args().check:
        FILE.write_text(text, encoding="utf-8")
    elif FILE.read_text(encoding="utf-8") != text:
        sys.exit(f"{FILE.name} is not what this program makes")


if __name__ == "__main__":
    main()
