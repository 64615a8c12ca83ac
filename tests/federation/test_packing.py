"""Weights as bytes: what was packed comes back, and hostile bytes are only ever refused."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from federation.packing import pack_arrays, unpack_arrays
from instahide.errors import InvalidInputError

WEIGHTS = {"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "scale": np.float32([1.5])}
shapes = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
float_arrays = arrays_of.arrays(np.float32, shapes)


@given(st.dictionaries(st.text(st.characters(codec="ascii", categories=["L"]), min_size=1), float_arrays))
def test_what_was_packed_is_unpacked_bit_for_bit(arrays: dict[str, np.ndarray]) -> None:
    again = unpack_arrays(pack_arrays(arrays))
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert again[name].shape == array.shape
        assert again[name].tobytes() == array.tobytes()


def test_memory_order_does_not_show() -> None:
    turned = {name: np.asfortranarray(array) for name, array in WEIGHTS.items()}
    assert pack_arrays(turned) == pack_arrays(WEIGHTS)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64"])
def test_other_dtypes_are_refused_at_both_ends(dtype: str) -> None:
    from safetensors.numpy import save

    with pytest.raises(InvalidInputError, match="float32"):
        pack_arrays({"w": np.zeros(3, dtype=dtype)})
    with pytest.raises(InvalidInputError, match="F32"):
        unpack_arrays(save({"w": np.zeros(3, dtype=dtype)}))


@settings(max_examples=500)
@given(st.binary(max_size=200), st.integers(0, 120))
def test_no_bytes_do_anything_but_read_or_be_refused(noise: bytes, keep: int) -> None:
    for data in (noise, pack_arrays(WEIGHTS)[:keep] + noise):
        with contextlib.suppress(InvalidInputError):
            assert all(array.dtype == np.float32 for array in unpack_arrays(data).values())


def test_archives_pickles_and_cut_bytes_are_refused() -> None:
    archive, pickled, whole = io.BytesIO(), io.BytesIO(), pack_arrays(WEIGHTS)
    np.savez(archive, **WEIGHTS)
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    for data in (archive.getvalue(), pickled.getvalue(), whole[:-1], whole + b"\0", whole[:9]):
        with pytest.raises(InvalidInputError):
            unpack_arrays(data)


@pytest.mark.parametrize("shape", [[10**12], [2**31, 2**31], [2**62, 4]])
def test_a_header_that_lies_about_its_size_costs_no_memory(shape: list[int]) -> None:
    size = 4 * int(np.prod([float(side) for side in shape]))
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(24)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInputError):
            unpack_arrays(data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
