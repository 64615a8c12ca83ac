"""A model's weights as one piece of bytes: safetensors, float32 only, read without trust.

Flower moves every array of a record as objects of its own, each with a request of its own at
every hop. A model of eight tensors cost 41 requests a message that way; packed into one array it
costs a dozen, whatever the model. Safetensors keeps names and shapes, holds nothing that could
run, and its reader checks every offset against the bytes that are there before it takes memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from instahide.errors import InvalidInputError

Arrays = dict[str, NDArray[np.float32]]


def pack_arrays(arrays: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The arrays as safetensors; ``b""`` for none. Raises InvalidInputError for another dtype."""
    for name, array in arrays.items():
        if np.asarray(array).dtype != np.float32:
            raise InvalidInputError(
                f"array {name[:40]!r} is {np.asarray(array).dtype}, not float32",
                hint="send floating arrays as float32",
            )
    contiguous = {name: np.require(array, requirements="C") for name, array in arrays.items()}
    return safetensors.numpy.save(contiguous) if contiguous else b""


def unpack_arrays(data: bytes) -> Arrays:
    """The arrays in ``data``, in the order safetensors keeps (by name); {} for ``b""``.

    Raises InvalidInputError for bytes that are not whole safetensors of float32 arrays.
    """
    if not data:
        return {}
    try:
        tensors = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    except Exception as error:  # SafetensorError, and whatever its Rust side raises
        raise InvalidInputError(
            f"{len(data)} bytes are not safetensors ({type(error).__name__})",
            hint="both ends need the same release",
        ) from error
    return {name: _as_float32(name, tensor) for name, tensor in tensors.items()}


def _as_float32(name: str, tensor: Mapping[str, Any]) -> NDArray[np.float32]:
    if tensor["dtype"] != "F32":
        raise InvalidInputError(
            f"array {name[:40]!r} is {tensor['dtype']}, not F32", hint="send floating arrays as float32"
        )
    return np.frombuffer(tensor["data"], dtype="<f4").reshape(tensor["shape"])


def arrays_sha256(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each array, by name: the same at either end."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
