"""The worker's conversation with relays: one at a time, cancelled by hanging up, never fatal."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from federation.frames import Frame, ask, ping, receive_frame, send_frame
from federation.messages import SiteReply
from federation.site.listener import Listener
from federation.site.refusals import CancelledTaskError
from federation.site.service import MAX_CONNECTIONS, Service, ServiceLimits
from instahide.errors import InvalidInputError

Answer = Callable[[Frame, Callable[[], bool]], SiteReply]
TRAIN = Frame("train", {}, {"w": np.ones(3, np.float32)})
WAIT = 20.0


def echo(frame: Frame, should_stop: Callable[[], bool]) -> SiteReply:
    return SiteReply(site_name="north", metrics={"num-examples": 1}, arrays=dict(frame.arrays))


@contextmanager
def serving(folder: Path, answer: Answer, *, busy_wait: float = 0.05, cap: int = 1 << 20) -> Iterator[Path]:
    path = folder / "run" / "w.sock"
    with Listener(path, allowed_uids=[os.getuid()]) as listener:
        limits = ServiceLimits(max_payload_bytes=cap, busy_wait_seconds=busy_wait, frame_seconds=WAIT)
        service = Service(
            listener, "north", answer, limits, scrub=lambda text: text.replace(str(folder), "<f>")
        )
        thread = threading.Thread(target=service.serve)
        thread.start()
        try:
            yield path
        finally:
            service.stop()
            thread.join()


def open_request(path: Path, frame: Frame = TRAIN) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    send_frame(connection, frame, timeout=WAIT)
    return connection


def reason(answer: Frame) -> str:
    return str(answer.fields["refusal"]["reason"])


class Slow:
    """Work that lasts until it is released or told to stop."""

    def __init__(self) -> None:
        self.started, self.release, self.cancelled = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, frame: Frame, should_stop: Callable[[], bool]) -> SiteReply:
        self.started.set()
        while not self.release.wait(0.01):
            if should_stop():
                self.cancelled.set()
                raise CancelledTaskError("stopped")
        return echo(frame, should_stop)


def test_a_request_is_answered_and_its_arrays_come_back(tmp_path: Path) -> None:
    with serving(tmp_path, echo) as path:
        answer = ask(path, TRAIN, timeout=WAIT)
    assert answer.kind == "reply"
    assert answer.fields == {"site": {"name": "north"}, "metrics": {"num-examples": 1}}
    np.testing.assert_array_equal(answer.arrays["w"], np.ones(3))


def test_a_ping_tells_a_listening_site_from_a_silent_one_and_from_none(tmp_path: Path) -> None:
    with serving(tmp_path, echo) as path:
        assert ping(path, timeout=WAIT)
    assert not ping(path)
    with Listener(path, allowed_uids=[os.getuid()]):  # loading: the door is there, nobody answers
        assert not ping(path, timeout=0.05)


def test_many_requests_one_after_the_other(tmp_path: Path) -> None:
    with serving(tmp_path, echo, busy_wait=WAIT) as path:
        for _ in range(3 * MAX_CONNECTIONS):
            assert ask(path, TRAIN, timeout=WAIT).arrays


def test_while_one_is_worked_on_a_second_is_told_to_come_back(tmp_path: Path) -> None:
    slow = Slow()
    with serving(tmp_path, slow) as path, open_request(path) as first:
        assert slow.started.wait(WAIT)
        assert ask(path, Frame("status"), timeout=WAIT).fields["status"] == {"state": "busy"}
        assert "busy" in reason(ask(path, TRAIN, timeout=WAIT))
        slow.release.set()
        answer = receive_frame(first, timeout=WAIT)
        assert answer is not None
        assert answer.arrays


def test_a_second_request_that_may_wait_gets_its_turn(tmp_path: Path) -> None:
    slow = Slow()
    with (
        serving(tmp_path, slow, busy_wait=WAIT) as path,
        open_request(path) as one,
        open_request(path) as two,
    ):
        assert slow.started.wait(WAIT)
        slow.release.set()
        for connection in (one, two):
            answer = receive_frame(connection, timeout=WAIT)
            assert answer is not None
            assert answer.arrays


def test_hanging_up_cancels_the_work_and_frees_the_site(tmp_path: Path) -> None:
    slow = Slow()
    with serving(tmp_path, slow, busy_wait=WAIT) as path:
        connection = open_request(path)
        assert slow.started.wait(WAIT)
        connection.close()
        assert slow.cancelled.wait(WAIT)
        slow.release.set()
        assert ask(path, TRAIN, timeout=WAIT).arrays


def test_stopping_abandons_the_work_and_says_so(tmp_path: Path) -> None:
    slow = Slow()
    with serving(tmp_path, slow) as path:
        connection = open_request(path)
        assert slow.started.wait(WAIT)
    with connection:
        answer = receive_frame(connection, timeout=WAIT)
    assert answer is not None
    assert "stopping" in reason(answer)
    assert slow.cancelled.is_set()


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"IHF1" + b"\xff" * 12, b"\x80\x04" + b"." * 40])
def test_bytes_that_are_no_frame_get_a_refusal_and_harm_nobody(tmp_path: Path, data: bytes) -> None:
    with serving(tmp_path, echo) as path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(path))
            connection.sendall(data)
            answer = receive_frame(connection, timeout=WAIT)
        assert answer is not None
        assert answer.fields["refusal"]["kind"] == "error"
        assert ask(path, TRAIN, timeout=WAIT).arrays


def test_a_model_above_the_sites_cap_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path, echo, cap=1000) as path:
        large = Frame("train", {}, {"w": np.ones(1000, np.float32)})
        assert "exceeds 1000" in reason(ask(path, large, timeout=WAIT))


def test_a_reply_is_no_request(tmp_path: Path) -> None:
    with serving(tmp_path, echo) as path:
        assert "no request" in reason(ask(path, Frame("reply"), timeout=WAIT))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InvalidInputError("wrong value", hint="mend it"), "wrong value"),
        (MemoryError(), "out of memory"),
        (RuntimeError("secret detail"), "unexpectedly (RuntimeError)"),
        (SystemExit("bye"), "unexpectedly (SystemExit)"),
    ],
)
def test_work_that_fails_is_a_refusal_and_the_worker_lives(
    tmp_path: Path, error: BaseException, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_once(frame: Frame, should_stop: Callable[[], bool], failed: list[bool] = []) -> SiteReply:  # noqa: B006
        if not failed:
            failed.append(True)
            raise error
        return echo(frame, should_stop)

    with serving(tmp_path, fail_once) as path:
        answer = ask(path, TRAIN, timeout=WAIT)
        assert said in reason(answer)
        assert answer.fields["refusal"]["kind"] == "error"
        assert ask(path, TRAIN, timeout=WAIT).arrays
    assert "secret detail" not in caplog.text


def test_paths_are_taken_out_of_refusals(tmp_path: Path) -> None:
    def fail(frame: Frame, should_stop: Callable[[], bool]) -> SiteReply:
        raise InvalidInputError(f"ledger {tmp_path}/state: disk full", hint=f"look at {tmp_path}")

    with serving(tmp_path, fail) as path:
        answer = ask(path, TRAIN, timeout=WAIT)
    assert answer.fields["refusal"] == {
        "reason": "ledger <f>/state: disk full",
        "hint": "look at <f>",
        "kind": "error",
    }
