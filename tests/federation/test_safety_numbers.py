"""Safety numbers: alike on both screens, another for any other key, forgiving of how they are typed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from federation.identity import create_identity
from federation.provisioning import create_authority, create_node_key
from federation.safety_numbers import (
    check_safety_number,
    coordinator_safety_number,
    safety_number,
    site_safety_number,
)
from instahide.errors import InvalidInputError, RefusedError

NUMBER = re.compile(r"[0-9]{5}( [0-9]{5}){5}")


def keys(folder: Path) -> tuple[str, str, str]:
    """A node's public line, an identity's public line, an authority's certificate."""
    return (
        create_node_key(folder).public.read_text(),
        create_identity(folder / "identity.key").public_line,
        create_authority(folder).certificate.read_text(),
    )


def test_the_number_is_the_formula_of_the_module(tmp_path: Path) -> None:
    """Computed here from the files' own bytes, with nothing of the module."""
    node, identity, authority = keys(tmp_path)

    def expected(role: bytes, *parts: bytes) -> str:
        data = b"instahide-fl safety number 1\x00" + role + b"\x00"
        data += b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        number = str(int(hashlib.sha256(data).hexdigest(), 16) % 10**30).rjust(30, "0")
        return " ".join(re.findall(".....", number))

    line = identity.encode()
    assert site_safety_number(node, identity) == expected(b"site", node.strip().encode(), line)
    der = x509.load_pem_x509_certificate(authority.encode()).public_bytes(serialization.Encoding.DER)
    assert coordinator_safety_number(authority, identity) == expected(b"coordinator", der, line)


@given(parts=st.lists(st.binary(max_size=40), max_size=4))
def test_a_number_has_six_groups_of_five_digits(parts: list[bytes]) -> None:
    assert NUMBER.fullmatch(safety_number("site", *parts))


@given(parts=st.lists(st.binary(max_size=8), min_size=2, max_size=4), cut=st.integers(0, 30))
def test_where_one_part_ends_and_the_next_begins_counts(parts: list[bytes], cut: int) -> None:
    joined = b"".join(parts)
    other = [joined[:cut], joined[cut:]]
    assert (safety_number("site", *parts) == safety_number("site", *other)) == (parts == other)


def test_any_other_key_gives_another_number(tmp_path: Path) -> None:
    first, second = keys(tmp_path / "a"), keys(tmp_path / "b")
    site = {
        site_safety_number(node, identity)
        for node in (first[0], second[0])
        for identity in (first[1], second[1])
    }
    coordinator = {
        coordinator_safety_number(authority, identity)
        for authority in (first[2], second[2])
        for identity in (first[1], second[1])
    }
    assert len(site | coordinator) == 8


def test_a_comment_behind_a_key_changes_nothing(tmp_path: Path) -> None:
    node, identity, _ = keys(tmp_path)
    commented = site_safety_number(f"{node.strip()} root@host\n", f"{identity} it@hospital")
    assert commented == site_safety_number(node, identity)


def test_what_is_no_key_or_certificate_has_no_number(tmp_path: Path) -> None:
    node, identity, authority = keys(tmp_path)
    for public, other in (("nothing", identity), (node, "nothing"), (identity, identity)):
        with pytest.raises(InvalidInputError):
            site_safety_number(public, other)
    for pem, other in (("nothing", identity), (authority, "nothing")):
        with pytest.raises(InvalidInputError):
            coordinator_safety_number(pem, other)


@pytest.mark.parametrize("typed", ["{}", " {} ", "{}\n"])
def test_a_number_may_be_typed_with_any_spaces_dots_or_dashes(typed: str) -> None:
    number = safety_number("site", b"key")
    for between in (" ", "", "-", ".", "  "):
        check_safety_number(typed.format(number.replace(" ", between)), number, whose="st-mary")


def test_another_number_is_refused_and_half_of_one_is_no_number() -> None:
    number = safety_number("site", b"key")
    last = str((int(number[-1]) + 1) % 10)
    with pytest.raises(RefusedError, match="number of st-mary is not the one you typed"):
        check_safety_number(number[:-1] + last, number, whose="st-mary")
    for typed in (number[:-1], number + "0", "", "not a number", number[:-1] + "٣"):
        with pytest.raises(InvalidInputError, match="has 30 digits"):
            check_safety_number(typed, number, whose="st-mary")
