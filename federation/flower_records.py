"""How packed weights sit in Flower's records: in as few objects as their size allows.

Flower stores and moves each record, each array and each five-megabyte chunk of an array as an
object of its own, at fifteen milliseconds of the SuperLink's time a request. Small weights
therefore travel as the bytes of one plain record; larger ones as an array, which Flower cuts
into chunks. Either end takes both forms.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord

from instahide.errors import InvalidInputError

ARRAYS = "arrays"  # name of the record with the weights
AGGREGATION = "secure-aggregation"  # name of the record with a message of that protocol
WEIGHTS = "weights"  # the one entry of that record: all weights, packed (packing.py)
LARGEST_PLAIN = 1_000_000  # bytes


def weights_record(data: bytes) -> ArrayRecord | ConfigRecord:
    """The record that carries packed weights."""
    if len(data) <= LARGEST_PLAIN:
        return ConfigRecord({WEIGHTS: data})
    return ArrayRecord({WEIGHTS: Array("uint8", (len(data),), "safetensors", data)})


def weights_in(record: object) -> bytes:
    """The packed weights a record carries. Raises InvalidInputError for anything else in it."""
    if not isinstance(record, ArrayRecord | ConfigRecord) or set(record) != {WEIGHTS}:
        raise InvalidInputError(
            "the record of arrays does not hold the packed weights alone",
            hint="install the same release everywhere",
        )
    entry = record[WEIGHTS]
    data = entry.data if isinstance(entry, Array) else entry
    if not isinstance(data, bytes):
        raise InvalidInputError(
            f"the weights are {type(data).__name__}, not bytes", hint="install the same release everywhere"
        )
    return data
