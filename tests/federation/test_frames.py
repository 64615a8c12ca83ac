"""Frames between relay and worker: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federation.frames import (
    MAGIC,
    MAX_HEADER_BYTES,
    Frame,
    FrameError,
    ask,
    encode_frame,
    receive_frame,
    send_frame,
)
from instahide.errors import FederationError

MANY_CALLS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HEADER = {"kind": "train", "fields": {}, "arrays": [], "octets": 0}

scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
values = st.one_of(scalars, st.lists(scalars, max_size=4))
names = st.text(min_size=1, max_size=20)
fields = st.dictionaries(names, st.one_of(values, st.dictionaries(names, values, max_size=3)), max_size=4)
arrays = st.dictionaries(
    st.text("abc.0_", min_size=1, max_size=8),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)),
    max_size=4,
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def received(data: bytes, *, max_payload_bytes: int = 1 << 20) -> Frame | None:
    """What a receiver makes of ``data`` followed by a hang-up."""
    left, right = socket.socketpair()
    with left, right:
        writer = threading.Thread(target=write_and_leave, args=(left, data))
        writer.start()
        try:
            return receive_frame(right, max_payload_bytes=max_payload_bytes, timeout=10)
        finally:
            right.close()
            writer.join()


def write_and_leave(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the reader may have read enough
        connection.sendall(data)
    connection.close()


def raw_frame(header: object, payload: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(">4sIQ", MAGIC, len(text), len(payload)) + text + payload


@given(
    kind=st.sampled_from(["train", "evaluate", "query.unmask", "status", "reply"]),
    fields=fields,
    arrays=arrays,
    octets=st.binary(max_size=40),
)
@settings(deadline=None, max_examples=60)
def test_a_frame_arrives_as_it_was_sent_and_in_order(
    kind: str, fields: dict[str, object], arrays: dict[str, np.ndarray], octets: bytes
) -> None:
    frame = received(b"".join(encode_frame(Frame(kind, fields, arrays, octets))))
    assert frame is not None
    assert frame.octets == octets
    assert (frame.kind, frame.fields, list(frame.arrays)) == (kind, fields, list(arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(frame.arrays[name], array)


def test_order_of_arrays_is_the_models_and_not_the_alphabets() -> None:
    sent = {name: np.zeros(1, np.float32) for name in ("z", "a", "m")}
    frame = received(b"".join(encode_frame(Frame("train", {}, sent))))
    assert frame is not None
    assert list(frame.arrays) == ["z", "a", "m"]


def test_a_peer_that_leaves_without_a_word_is_no_error() -> None:
    assert received(b"") is None


@given(st.binary(max_size=400))
@settings(deadline=None, max_examples=150)
def test_random_bytes_are_refused(data: bytes) -> None:
    if data:
        with pytest.raises(FrameError):
            received(data)


@given(header=st.binary(max_size=200), payload=st.binary(max_size=200))
@settings(deadline=None, max_examples=150)
def test_random_headers_and_payloads_behind_a_good_prefix_are_refused(header: bytes, payload: bytes) -> None:
    with pytest.raises(FrameError):
        received(raw_frame(header, payload))


@given(st.integers(0, 400), st.integers(0, 255))
@settings(deadline=None, max_examples=150)
def test_a_flipped_byte_is_refused_or_gives_a_well_formed_frame(position: int, value: int) -> None:
    data = bytearray(b"".join(encode_frame(Frame("train", {"a": 1}, {"w": np.ones((3, 3), np.float32)}))))
    data[position % len(data)] = value
    try:
        frame = received(bytes(data))
    except FrameError:
        return
    assert frame is not None
    assert all(array.dtype == np.float32 for array in frame.arrays.values())


@pytest.mark.parametrize(
    "header",
    [
        [],
        {},
        {**HEADER, "kind": "shutdown"},
        {**HEADER, "kind": ["train"]},
        {**HEADER, "extra": 1},
        {**HEADER, "fields": []},
        {**HEADER, "fields": {"a": None}},
        {**HEADER, "fields": {"a": {"b": {"c": 1}}}},
        {**HEADER, "fields": {"a": [[1]]}},
        {**HEADER, "fields": {"a": 2**63}},
        {**HEADER, "arrays": {"a": 1}},
        {**HEADER, "arrays": [1]},
        {**HEADER, "arrays": ["a", "a"]},
        {**HEADER, "arrays": ["a"]},  # named, not sent
        {**HEADER, "octets": -1},
        {**HEADER, "octets": True},
        {**HEADER, "octets": 10**9},  # more than the payload
        b'{"kind": "train", "kind": "status", "fields": {}, "arrays": [], "octets": 0}',
        b'{"kind": "train", "fields": {"a": NaN}, "arrays": [], "octets": 0}',
        b'{"kind": "train", "fields": {"a": 1e999}, "arrays": [], "octets": 0}',
        b"[" * 60_000,
        b"\xff\xfe",
    ],
)
def test_a_header_outside_the_schema_is_refused(header: object) -> None:
    with pytest.raises(FrameError):
        received(raw_frame(header))


def test_a_payload_with_an_array_the_header_does_not_name_is_refused() -> None:
    payload = safetensors.numpy.save({"w": np.ones(2, np.float32), "hidden": np.ones(2, np.float32)})
    with pytest.raises(FrameError, match="different arrays"):
        received(raw_frame({**HEADER, "arrays": ["w"]}, payload))


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.float16, np.uint8])
def test_only_float32_travels(dtype: type) -> None:
    payload = safetensors.numpy.save({"w": np.ones(2, dtype)})
    with pytest.raises(FrameError, match="F32"):
        received(raw_frame({**HEADER, "arrays": ["w"]}, payload))
    with pytest.raises(FrameError, match="float32"):
        encode_frame(Frame("train", {}, {"w": np.ones(2, dtype)}))


@pytest.mark.parametrize("lengths", [(MAX_HEADER_BYTES + 1, 0), (2**32 - 1, 0), (10, 1025), (10, 2**64 - 1)])
def test_lengths_above_the_caps_are_refused_unread(lengths: tuple[int, int]) -> None:
    with pytest.raises(FrameError, match="exceeds"):
        received(struct.pack(">4sIQ", MAGIC, *lengths), max_payload_bytes=1024)


def test_a_length_that_lies_costs_no_memory() -> None:
    """A claim of 1 GiB below the cap, with 100 bytes behind it, must not reserve 1 GiB."""
    header = json.dumps(HEADER).encode()
    data = struct.pack(">4sIQ", MAGIC, len(header), 1 << 30) + header + b"x" * 100
    tracemalloc.start()
    with pytest.raises(FrameError, match="cut short"):
        received(data, max_payload_bytes=2 << 30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_header_too_large_to_be_taken_is_not_sent() -> None:
    with pytest.raises(FrameError, match="exceeds"):
        encode_frame(Frame("reply", {"text": "x" * MAX_HEADER_BYTES}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, b"bytes", 2**64])
def test_a_value_that_json_cannot_hold_is_not_sent(value: object) -> None:
    with pytest.raises(FrameError):
        encode_frame(Frame("reply", {"value": value}))


def test_a_silent_peer_is_not_waited_for_beyond_the_timeout(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    with pytest.raises(FrameError, match="within"):
        receive_frame(pair[1], timeout=0.05)


def test_a_trickle_of_bytes_does_not_renew_the_timeout(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    stop = threading.Event()

    def trickle() -> None:
        for byte in b"".join(encode_frame(Frame("train", {"text": "x" * 1000}))):
            if stop.wait(0.02):
                return
            left.send(bytes([byte]))

    writer = threading.Thread(target=trickle)
    writer.start()
    with pytest.raises(FrameError, match="within"):
        receive_frame(right, timeout=0.2)  # the whole frame would take 20 s
    stop.set()
    writer.join()


def test_a_peer_that_does_not_read_is_not_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(FrameError, match="not taken"):
        send_frame(pair[0], Frame("train", {}, {"w": np.zeros(1 << 20, np.float32)}), timeout=0.1)


def test_nobody_behind_the_socket_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="not there") as caught:
        ask(tmp_path / "worker.sock", Frame("status"))
    assert str(tmp_path) not in str(caught.value)


@contextlib.contextmanager
def hanging_up(path: Path, last_words: Frame | None) -> Iterator[None]:
    """Behind ``path``: a worker that reads a request's first bytes only, speaks, and leaves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(16)
                if last_words is not None:
                    send_frame(connection, last_words, timeout=10)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_the_reason_of_a_refusal_is_heard_where_the_rest_of_the_request_was_never_read(
    tmp_path: Path,
) -> None:
    refusal = Frame("reply", {"refusal": {"reason": "payload too large", "hint": "send less"}})
    larger_than_any_socket_buffer = Frame("train", {}, {"w": np.ones(8_000_000, np.float32)})
    with hanging_up(tmp_path / "s", refusal):
        assert ask(tmp_path / "s", larger_than_any_socket_buffer, timeout=10).fields == refusal.fields


def test_a_worker_that_leaves_in_the_middle_of_a_request_without_a_word_is_an_error(tmp_path: Path) -> None:
    request = Frame("train", {}, {"w": np.ones(8_000_000, np.float32)})
    with hanging_up(tmp_path / "s", None), pytest.raises(FrameError, match="the other end left"):
        ask(tmp_path / "s", request, timeout=10)


def test_frames_need_neither_torch_nor_flower() -> None:
    program = "import sys, federation.frames; print({'torch', 'flwr', 'pickle5'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
