"""Packed weights in Flower's records: small ones in one object, large ones as an array."""

from __future__ import annotations

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from federation.flower_records import LARGEST_PLAIN, WEIGHTS, weights_in, weights_record
from instahide.errors import InvalidInputError


@pytest.mark.parametrize("size", [0, 1, LARGEST_PLAIN, LARGEST_PLAIN + 1])
def test_what_was_put_in_comes_out_whatever_its_size(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    record = weights_record(data)
    assert weights_in(record) == data
    assert isinstance(record, ConfigRecord if size <= LARGEST_PLAIN else ArrayRecord)


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({}),
        ConfigRecord({WEIGHTS: "text"}),
        ConfigRecord({WEIGHTS: b"x", "more": b"y"}),
        MetricRecord({WEIGHTS: 1.0}),
        ArrayRecord({"layer": Array("uint8", (1,), "safetensors", b"x")}),
        None,
    ],
)
def test_anything_else_is_refused(record: object) -> None:
    with pytest.raises(InvalidInputError):
        weights_in(record)
