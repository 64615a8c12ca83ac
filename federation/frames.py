"""Frames: what the relay and the site worker say to each other over a Unix socket.

The relay runs code near the network; the worker holds patients' images. Between them stands
this file and nothing else: a frame is plain JSON and plain float32 arrays, both limited in
size before they are read, and no byte of it is ever executed or unpickled.

::

    "IHF1" | header length u32 | payload length u64 | header JSON | payload (safetensors | octets)

    header  {"kind": "train", "fields": {...}, "arrays": ["conv.weight", ...], "octets": 0}
            kind    one of KINDS
            fields  kebab-case names -> text, whole numbers, finite numbers, truth values,
                    lists of those, or one further level of such a mapping
            arrays  the names in the payload, in the model's order
            octets  length of what follows the arrays: a record of secure aggregation, opaque here

Lengths are big-endian. A receiver grows its buffer as bytes arrive, so a length that lies
costs the liar's bytes and not ours. Nothing here imports torch or Flower.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from instahide.errors import FederationError, InvalidInputError

from .packing import pack_arrays, unpack_arrays

MAGIC: Final = b"IHF1"
QUERIES: Final = frozenset({"query.session", "query.confirm", "query.unmask"})  # of secure aggregation
KINDS: Final = QUERIES | {"train", "evaluate", "status", "reply"}
BUNDLE_KEY: Final = "bundle-sha256"
"""Field of a request beside "config": the hash of the app bundle that the run was submitted with."""
MAX_HEADER_BYTES: Final = 64 * 1024
DEFAULT_MAX_PAYLOAD_BYTES: Final = 2 * 1024**3
MAX_ARRAYS: Final = 4096
"""The header's size limit bites first for names of more than a dozen letters."""

_PREFIX: Final = struct.Struct(">4sIQ")
_CHUNK_BYTES: Final = 1 << 20


class FrameError(FederationError):
    """The other end sent something that is not a frame, too much of it, or too slowly."""


@dataclass(frozen=True)
class Frame:
    """One message: a kind, a small mapping, float32 arrays by name, in order, and opaque bytes."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    octets: bytes = field(default=b"", repr=False)


def encode_frame(frame: Frame) -> tuple[bytes, ...]:
    """(prefix and header, arrays, octets) of ``frame``; FrameError where a receiver would refuse it."""
    try:
        payload = pack_arrays(frame.arrays)
    except InvalidInputError as error:
        raise FrameError(error.message, hint=error.hint) from error
    header_fields = {
        "kind": frame.kind,
        "fields": dict(frame.fields),
        "arrays": list(frame.arrays),
        "octets": len(frame.octets),
    }
    _check_header(header_fields)
    try:
        header = json.dumps(header_fields, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise FrameError(f"fields cannot be written as JSON: {error}", hint="send plain values") from error
    if len(header) > MAX_HEADER_BYTES:
        raise FrameError(
            f"header of {len(header)} bytes exceeds {MAX_HEADER_BYTES}", hint="send fewer fields"
        )
    length = len(payload) + len(frame.octets)
    return _PREFIX.pack(MAGIC, len(header), length) + header, payload, frame.octets


def send_frame(connection: socket.socket, frame: Frame, *, timeout: float | None = None) -> None:
    """Write one whole frame within ``timeout`` seconds.

    Raises:
        FrameError: the frame is not sendable, the other end left, or time ran out.
    """
    _send(connection, encode_frame(frame), timeout)


def _send(connection: socket.socket, parts: tuple[bytes, ...], timeout: float | None) -> None:
    deadline = _Deadline(timeout)
    try:
        for part in parts:
            view = memoryview(part)
            while view:
                deadline.apply(connection)
                view = view[connection.send(view[:_CHUNK_BYTES]) :]
    except TimeoutError as error:
        raise FrameError(
            f"the frame was not taken within {timeout} s", hint="is the other end alive?"
        ) from error
    except OSError as error:
        raise FrameError(f"the other end left: {error.strerror}", hint="look at its log") from error


def receive_frame(
    connection: socket.socket,
    *,
    max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
    timeout: float | None = None,
) -> Frame | None:
    """Read one frame; ``None`` when the other end closed before its first byte.

    Args:
        connection: a connected stream socket.
        max_payload_bytes: largest payload accepted; a larger claim is refused unread.
        timeout: seconds for the whole frame, not for each read; ``None`` waits for ever.

    Raises:
        FrameError: not a frame, too large, cut short, or too slow.
    """
    deadline = _Deadline(timeout)
    try:
        prefix = _read(connection, _PREFIX.size, deadline, may_be_absent=True)
        if not prefix:
            return None
        header_bytes, payload_bytes = _checked_lengths(prefix, max_payload_bytes)
        header = _parse_header(_read(connection, header_bytes, deadline))
        payload = _read(connection, payload_bytes, deadline)
    except TimeoutError as error:
        raise FrameError(f"no whole frame within {timeout} s", hint="is the other end alive?") from error
    except OSError as error:
        raise FrameError(f"the other end left: {error.strerror}", hint="look at its log") from error
    cut = len(payload) - header["octets"]
    if cut < 0:
        raise FrameError("the payload is shorter than its octets", hint="both ends need one version")
    arrays = _parse_payload(payload[:cut], header["arrays"])
    return Frame(header["kind"], header["fields"], arrays, payload[cut:])


class _Deadline:
    """One allowance of time for many reads: a trickle of single bytes does not renew it."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def apply(self, connection: socket.socket) -> None:
        if self._end is None:
            connection.settimeout(None)
            return
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)


def _read(
    connection: socket.socket, count: int, deadline: _Deadline, *, may_be_absent: bool = False
) -> bytes:
    buffer = bytearray()
    while len(buffer) < count:
        deadline.apply(connection)
        chunk = connection.recv(min(count - len(buffer), _CHUNK_BYTES))
        if not chunk:
            if may_be_absent and not buffer:
                return b""
            raise FrameError(
                f"frame cut short at byte {len(buffer)} of {count}", hint="look at the other end's log"
            )
        buffer += chunk
    return bytes(buffer)


def _checked_lengths(prefix: bytes, max_payload_bytes: int) -> tuple[int, int]:
    magic, header_bytes, payload_bytes = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise FrameError(f"not a frame: it starts with {magic!r}", hint="both ends need the same version")
    if header_bytes > MAX_HEADER_BYTES:
        raise FrameError(
            f"header of {header_bytes} bytes exceeds {MAX_HEADER_BYTES}", hint="send fewer fields"
        )
    if payload_bytes > max_payload_bytes:
        raise FrameError(
            f"payload of {payload_bytes} bytes exceeds {max_payload_bytes}",
            hint="raise max-payload-bytes at the site for a larger model",
        )
    return int(header_bytes), int(payload_bytes)


def _parse_header(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise FrameError(
            f"header is not plain JSON ({type(error).__name__})", hint="both ends need one version"
        ) from error
    _check_header(header)
    return dict(header)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a key appears twice")
    return mapping


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _check_header(header: Any) -> None:
    if not isinstance(header, dict) or set(header) != {"kind", "fields", "arrays", "octets"}:
        raise FrameError(
            "header needs exactly kind, fields, arrays and octets", hint="both ends need one version"
        )
    if type(header["octets"]) is not int or header["octets"] < 0:
        raise FrameError("octets is not a length", hint="both ends need one version")
    if not isinstance(header["kind"], str) or header["kind"] not in KINDS:
        raise FrameError(
            f"unknown frame kind {str(header['kind'])[:40]!r}", hint=f"one of {', '.join(sorted(KINDS))}"
        )
    names = header["arrays"]
    if not isinstance(names, list) or len(names) > MAX_ARRAYS or not all(isinstance(n, str) for n in names):
        raise FrameError("arrays is not a list of names", hint=f"at most {MAX_ARRAYS} names")
    if len(set(names)) != len(names):
        raise FrameError("an array name appears twice", hint="name each array once")
    _check_fields(header["fields"], may_nest=True)


def _check_fields(fields: Any, *, may_nest: bool) -> None:
    if not isinstance(fields, dict):
        raise FrameError("fields is not a mapping", hint="both ends need one version")
    for name, value in fields.items():
        if isinstance(value, dict) and may_nest:
            _check_fields(value, may_nest=False)
        elif isinstance(value, (list, tuple)):
            _check_scalars(name, value)
        else:
            _check_scalars(name, (value,))


def _check_scalars(name: Any, values: Any) -> None:
    for value in values:
        plain = isinstance(value, (str, bool)) or (isinstance(value, int) and abs(value) < 2**63)
        finite = isinstance(value, float) and math.isfinite(value)
        if not isinstance(name, str) or not (plain or finite):
            raise FrameError(
                f"field {str(name)[:40]!r} holds a {type(value).__name__} that is not allowed",
                hint="text, 64-bit whole numbers, finite numbers, truth values or lists of those",
            )


def _parse_payload(payload: bytes, names: list[str]) -> dict[str, NDArray[np.float32]]:
    try:
        tensors = unpack_arrays(payload)
    except InvalidInputError as error:
        raise FrameError(f"payload: {error.message}", hint=error.hint) from error
    if set(tensors) != set(names):
        raise FrameError("payload and header name different arrays", hint="both ends need one version")
    return {name: tensors[name] for name in names}


def ask(
    path: str | Path,
    frame: Frame,
    *,
    timeout: float | None = None,
    connect_timeout: float = 5.0,
    max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
) -> Frame:
    """Send ``frame`` to the worker behind the socket at ``path`` and wait for its answer.

    Args:
        path: the worker's socket.
        frame: the request.
        timeout: seconds for sending and, again, for the whole answer; ``None`` waits for ever.
        connect_timeout: seconds to be let in.
        max_payload_bytes: largest answer accepted.

    Raises:
        FederationError: nobody listens there, we are not let in, or the answer is no frame.
    """
    parts = encode_frame(frame)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(connect_timeout)
        try:
            connection.connect(str(path))
        except (OSError, ValueError) as error:
            raise FederationError(
                f"the site worker is not there ({type(error).__name__})",
                hint="start it with `instahide node start`, and check that both name the same socket",
            ) from error
        answer = _exchange(connection, parts, max_payload_bytes, timeout)
    if answer is None:
        raise FederationError(
            "the site worker closed the connection without an answer",
            hint="is this operating-system user among its allowed-uids?",
        )
    return answer


def _exchange(
    connection: socket.socket, parts: tuple[bytes, ...], max_payload_bytes: int, timeout: float | None
) -> Frame | None:
    """Send and hear the answer, also where the worker refused the frame before it had read it all.

    Such a worker answers and hangs up while we still write; the reason is waiting to be read.
    """
    try:
        _send(connection, parts, timeout)
    except FrameError as not_taken:
        if not isinstance(not_taken.__cause__, BrokenPipeError | ConnectionResetError):
            raise
        try:
            answer = receive_frame(connection, max_payload_bytes=max_payload_bytes, timeout=timeout)
        except FrameError:
            answer = None
        if answer is None:
            raise
        return answer
    return receive_frame(connection, max_payload_bytes=max_payload_bytes, timeout=timeout)


def ping(path: str | Path, *, timeout: float = 2.0) -> bool:
    """Whether a worker that is ready answers behind the socket at ``path`` within ``timeout`` seconds."""
    try:
        return "status" in ask(path, Frame("status"), timeout=timeout, connect_timeout=timeout).fields
    except FederationError:
        return False
