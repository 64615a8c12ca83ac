"""Safety numbers: what two people read to each other so that keys need no trust in the mail.

A number of thirty digits in six groups, as in ``31415 92653 58979 32384 62643 38327``:

    SHA-256("instahide-fl safety number 1" 0x00 role 0x00 part_1 part_2 ...)  mod 10^30

where each part is preceded by its length (8 bytes, big-endian). A site's parts are the public
halves of its node key and identity key, the coordinator's are the certificate of its authority
and its public identity key. So one number in each direction stands for all keys that a join
brings; every join file is signed by them (``joining``).

To pass off keys of one's own, one has to find some with the same number: 10^30 is 2^99.7 tries.
Thirty digits a party are also what Signal uses (Marlinspike 2016, "Safety number updates").
"""

from __future__ import annotations

import hashlib
import re

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from instahide.errors import InvalidInputError, RefusedError

from .identity import load_public_identity, public_line
from .provisioning import load_public_key

DIGITS, GROUP = 30, 5
_LABEL = b"instahide-fl safety number 1\0"


def safety_number(role: str, *parts: bytes) -> str:
    """Six groups of five digits for ``parts`` in this order; ``role`` keeps kinds of numbers apart."""
    digest = hashlib.sha256(_LABEL + role.encode("ascii") + b"\0")
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    digits = f"{int.from_bytes(digest.digest(), 'big') % 10**DIGITS:0{DIGITS}d}"
    return " ".join(digits[start : start + GROUP] for start in range(0, DIGITS, GROUP))


def site_safety_number(public_key: str, identity_key: str) -> str:
    """Of a hospital's node key and identity key (OpenSSH lines). Raises InvalidInputError."""
    node = load_public_key(public_key.encode("ascii")).public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return safety_number("site", node, _identity(identity_key))


def coordinator_safety_number(authority: str, identity_key: str) -> str:
    """Of the authority's certificate or chain (PEM) and the coordinator's identity key (OpenSSH line).

    Raises InvalidInputError where either cannot be read.
    """
    try:
        chain = x509.load_pem_x509_certificates(authority.encode("ascii"))
    except ValueError as error:
        raise InvalidInputError("this is no PEM certificate", hint="ask for the file anew") from error
    ders = [certificate.public_bytes(serialization.Encoding.DER) for certificate in chain]
    return safety_number("coordinator", *ders, _identity(identity_key))


def check_safety_number(typed: str, expected: str, *, whose: str) -> None:
    """Compare a number that was heard and typed in; only its digits count.

    Raises InvalidInputError if it has not thirty digits, RefusedError if it is another.
    """
    digits = re.sub(r"[\s.-]", "", typed)
    if not re.fullmatch(rf"[0-9]{{{DIGITS}}}", digits):
        raise InvalidInputError(
            f"a safety number has {DIGITS} digits, this has {len(digits)} characters",
            hint=f"type it as it was read out: {DIGITS // GROUP} groups of {GROUP} digits, in quotes",
        )
    if digits != expected.replace(" ", ""):
        raise RefusedError(
            f"the safety number of {whose} is not the one you typed",
            hint="compare group by group; if they differ, the file is not theirs: take no part",
        )


def _identity(line: str) -> bytes:
    return public_line(load_public_identity(line)).encode("ascii")
