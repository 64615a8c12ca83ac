"""Messages: what is written is read back; anything else is refused by name and nothing breaks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.secure_aggregation import (
    Advert,
    Confirmation,
    ConfirmRequest,
    Report,
    ReportRequest,
    SessionRequest,
    UnmaskAnswer,
    UnmaskRequest,
)
from federation.secure_aggregation.records import MAX_COPIED_BYTES, Record
from instahide.errors import InvalidInputError

from .parties import parties


def one_of_each() -> list[Record]:
    group = parties(3, vector_length=5, confirm_survivors=True)
    request = group.server.start_round(1)
    reports = [group.report(name, request) for name in group.names]
    for report in reports:
        group.server.add_report(report)
    asked = group.close()["site-000"]
    return [
        group.server.request(),
        group.sites["site-000"].advert(),
        request,
        reports[0],
        group.server.confirm_request(),
        group.sites["site-000"].confirm(group.server.confirm_request()),
        asked,
        group.answer("site-000", asked),
    ]


KINDS = (
    SessionRequest,
    Advert,
    ReportRequest,
    Report,
    ConfirmRequest,
    Confirmation,
    UnmaskRequest,
    UnmaskAnswer,
)


def test_every_message_survives_both_forms() -> None:
    for record in one_of_each():
        assert type(record).from_bytes(record.to_bytes()) == record
        mapping = record.to_mapping()
        assert type(record).from_mapping(mapping) == record
        plain = (int, str, bytes, list, memoryview)
        assert all(isinstance(value, plain) and not isinstance(value, bool) for value in mapping.values())


def test_every_missing_unknown_or_mistyped_key_is_named() -> None:
    for record in one_of_each():
        mapping = record.to_mapping()
        for key, value in mapping.items():
            without = {other: kept for other, kept in mapping.items() if other != key}
            with pytest.raises(InvalidInputError, match=f"lacks the key '{key}'"):
                type(record).from_mapping(without)
            for wrong in wrong_values(value):
                with pytest.raises(InvalidInputError, match=f"{key} in a {record.kind}"):
                    type(record).from_mapping(mapping | {key: wrong})
        with pytest.raises(InvalidInputError, match="holds the key 'extra'"):
            type(record).from_mapping(mapping | {"extra": 1})


def wrong_values(value: Any) -> list[Any]:
    if isinstance(value, int):
        return [0, -1, 2**40, True, "1", 1.0, None]
    if isinstance(value, str):
        return ["", "a" * 101, "line\nbreak", b"bytes", 3, None]
    if isinstance(value, list):
        return [[1], ["text"], [bytes(10_000)], [b""] * 256, b"bytes", None]
    return ["text", 3, [value], None]


@pytest.mark.parametrize(
    ("kind", "key", "largest"),
    [
        (SessionRequest, "session-id", 16),
        (SessionRequest, "roster-sha256", 32),
        (Advert, "public-key", 32),
        (Advert, "signature", 64),
        (ReportRequest, "participants", 32),
        (ReportRequest, "adverts", 96 * 255),
        (Report, "channels", 8 * 1024),
        (Report, "check-values", 32 * 255),
        (UnmaskAnswer, "shares", 32 * 128 * 128),
    ],
)
def test_byte_strings_have_a_largest_length(kind: type[Record], key: str, largest: int) -> None:
    mapping = next(each for each in one_of_each() if isinstance(each, kind)).to_mapping()
    kind.from_mapping(mapping | {key: bytes(largest)})
    with pytest.raises(InvalidInputError, match=key):
        kind.from_mapping(mapping | {key: bytes(largest + 1)})


def test_every_shortened_message_is_refused() -> None:
    for record in one_of_each():
        data = record.to_bytes()
        for length in range(len(data)):
            with pytest.raises(InvalidInputError):
                type(record).from_bytes(data[:length])
        with pytest.raises(InvalidInputError):
            type(record).from_bytes(data + b"\0")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 7), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4))
def test_altered_bytes_are_refused_or_read_as_a_record_and_nothing_else_happens(
    which: int, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(SAMPLES[which])
    for place, value in changes:
        data[place % len(data)] = value
    try:
        record = KINDS[which].from_bytes(bytes(data))
    except InvalidInputError:
        return
    assert KINDS[which].from_bytes(record.to_bytes()) == record


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 7), st.binary(max_size=200))
def test_random_bytes_are_refused(which: int, data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        KINDS[which].from_bytes(b"IHS1" + data)


def test_a_record_has_one_encoding_keys_out_of_order_or_twice_are_refused() -> None:
    record = next(each for each in one_of_each() if isinstance(each, ConfirmRequest))
    entries = [
        bytes([len(key)]) + key.encode() + value
        for key, value in {
            "attempt": b"i" + (1).to_bytes(8, "big"),
            "server-round": b"i" + (1).to_bytes(8, "big"),
            "session-id": b"b" + (16).to_bytes(8, "big") + record.session_id,
            "survivors": b"b" + (1).to_bytes(8, "big") + record.survivors,
        }.items()
    ]
    assert ConfirmRequest.from_bytes(b"IHS1" + b"".join(entries)) == record
    for wrong in ([*entries[1:], entries[0]], [entries[0], *entries]):
        with pytest.raises(InvalidInputError, match="not in order"):
            ConfirmRequest.from_bytes(b"IHS1" + b"".join(wrong))


def test_lengths_that_lie_take_no_memory() -> None:
    key = bytes([8]) + b"channels"
    for value in (
        b"b" + (2**63).to_bytes(8, "big"),
        b"l" + (2**32 - 1).to_bytes(4, "big"),
        b"s" + b"\xff" * 4,
    ):
        with pytest.raises(InvalidInputError, match="cut short"):
            Report.from_bytes(b"IHS1" + key + value)


def test_a_long_vector_is_a_view_of_the_message_not_a_copy() -> None:
    group = parties(3, vector_length=MAX_COPIED_BYTES)
    report = group.report("site-000", group.server.start_round(1))
    data = report.to_bytes()
    read = Report.from_bytes(data)
    assert isinstance(read.vector, memoryview)
    assert read.vector.obj is data
    assert read == report


def test_the_wire_carries_little_beside_the_vector() -> None:
    """Five sites and 100,000 entries: packages, check values and names are under one per cent."""
    group = parties(5, vector_length=100_000)
    report = group.report("site-000", group.server.start_round(1))
    assert len(report.to_bytes()) < 1.01 * group.roster.parameters.vector_bytes
    assert sum(map(len, report.packages)) == 4 * (32 * 5 + 32)


SAMPLES: list[bytes] = [record.to_bytes() for record in one_of_each()]
