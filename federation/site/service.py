"""The worker's conversation with relays: one request at a time, cancelled by hanging up.

Each connection carries one request. Connections are read by threads of their own; the work
itself runs on one thread, so a second request waits a little and is then told that the site is
busy. While a request is worked on its connection is watched: when the relay goes away, so does
the work. Whatever goes wrong, the relay gets an answer and the worker lives.
"""

from __future__ import annotations

import logging
import queue
import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from instahide.errors import InstaHideError

from ..frames import Frame, FrameError, receive_frame, send_frame
from ..messages import SiteReply
from .listener import Listener
from .log import describe_fault
from .refusals import CancelledTaskError, refusal

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 8
FRAME_SECONDS = 300.0
"""For a whole frame to come in or go out; a local socket moves 2 GiB in a few seconds."""

StopQuestion = Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """How much a relay may send, and how long a second request waits."""

    max_payload_bytes: int
    busy_wait_seconds: float = 5.0
    frame_seconds: float = FRAME_SECONDS


@dataclass
class _Job:
    frame: Frame
    cancelled: threading.Event = field(default_factory=threading.Event)
    outcome: Future[SiteReply] = field(default_factory=Future)


class Service:
    """Serves a listener until told to stop.

    Args:
        listener: where relays knock.
        site_name: for replies.
        answer: the work: ``(frame, should_stop) -> SiteReply``; called on one thread only.
        limits: sizes and times.
        scrub: takes out of a text what must not leave (paths).
    """

    def __init__(
        self,
        listener: Listener,
        site_name: str,
        answer: Callable[[Frame, StopQuestion], SiteReply],
        limits: ServiceLimits,
        *,
        scrub: Callable[[str], str] = str,
    ) -> None:
        self._listener, self._site_name, self._answer = listener, site_name, answer
        self._limits, self._scrub = limits, scrub
        self._stopping = threading.Event()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._worker = threading.Thread(target=self._work, name="work", daemon=True)
        self._conversations: set[threading.Thread] = set()

    def stop(self) -> None:
        """Ask :meth:`serve` to return; safe in a signal handler."""
        self._stopping.set()

    def serve(self, *, grace_seconds: float = 4.0) -> bool:
        """Serve until :meth:`stop`; true if all work ended within ``grace_seconds`` of it."""
        self._worker.start()
        while not self._stopping.is_set():
            connection = self._listener.accept(timeout=0.2)
            if connection is not None:
                self._start_conversation(connection)
        self._jobs.put(None)
        end = time.monotonic() + grace_seconds
        for thread in [self._worker, *self._conversations]:
            thread.join(max(0.0, end - time.monotonic()))
        return not self._worker.is_alive()

    def _start_conversation(self, connection: socket.socket) -> None:
        if not self._places.acquire(blocking=False):
            logger.warning("refused a connection: %d are open", MAX_CONNECTIONS)
            connection.close()
            return
        self._conversations = {thread for thread in self._conversations if thread.is_alive()}
        thread = threading.Thread(target=self._converse, args=(connection,), daemon=True)
        self._conversations.add(thread)
        thread.start()

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            try:
                frame = receive_frame(
                    connection,
                    max_payload_bytes=self._limits.max_payload_bytes,
                    timeout=self._limits.frame_seconds,
                )
                if frame is not None:
                    self._reply(connection, self._reply_to(frame, connection))
            except FrameError as error:
                logger.warning("a frame was refused: %s", error.message)
                self._reply(connection, self._refusal(error.message, error.hint))
            except CancelledTaskError:
                logger.info("a request was cancelled: the relay left")
            except Exception as error:
                logger.warning("a conversation failed: %s", describe_fault(error))
            finally:
                self._places.release()

    def _reply(self, connection: socket.socket, reply: Frame) -> None:
        try:
            send_frame(connection, reply, timeout=self._limits.frame_seconds)
        except FrameError as error:
            logger.warning("a reply did not go out: %s", error.message)

    def _reply_to(self, frame: Frame, connection: socket.socket) -> Frame:
        if frame.kind == "status":
            state = "busy" if self._turn.locked() else "ready"
            return Frame("reply", {"site": {"name": self._site_name}, "status": {"state": state}})
        if frame.kind == "reply":
            return self._refusal("a reply is no request", "send train, evaluate or status")
        if not self._turn.acquire(timeout=self._limits.busy_wait_seconds):
            return self._refusal("the site is busy with another request", "ask again later")
        try:
            return self._run(frame, connection)
        finally:
            self._turn.release()

    def _run(self, frame: Frame, connection: socket.socket) -> Frame:
        """Hand the job to the working thread, and watch the connection until it is done."""
        job = _Job(frame)
        self._jobs.put(job)
        while not _wait(job.outcome, 0.05):
            if self._stopping.is_set() or _hung_up(connection):
                job.cancelled.set()
                # Not waited for: a stopping worker must not hang on one long step. But the turn
                # is kept until the step is over, so that two jobs never share the model.
                if not self._stopping.is_set():
                    _wait(job.outcome, None)
                break
        if self._stopping.is_set() and not _wait(job.outcome, 2.0):
            return self._refusal("the site worker is stopping", "ask again when it is back")
        return self._to_frame(job.outcome)

    def _to_frame(self, outcome: Future[SiteReply]) -> Frame:
        try:
            reply = outcome.result()
        except CancelledTaskError:
            if self._stopping.is_set():
                return self._refusal("the site worker is stopping", "ask again when it is back")
            raise
        except InstaHideError as error:
            return self._refusal(error.message, error.hint)
        except MemoryError:
            return self._refusal("the site ran out of memory", "a smaller batch-size or model may fit")
        except OSError as error:
            logger.warning("a request failed: %s", describe_fault(error))
            return self._refusal(
                f"the site cannot read or write its own files ({error.strerror or type(error).__name__})",
                "at the site: check the disk of the state folder and its free space",
            )
        except BaseException as error:  # a SystemExit in the work must not end the conversation
            logger.warning("a request failed: %s", describe_fault(error))
            return self._refusal(
                f"the site failed unexpectedly ({type(error).__name__})", "its log says where"
            )
        return self._frame(reply)

    def _frame(self, reply: SiteReply) -> Frame:
        records = reply.to_mapping()
        if "refusal" in records:
            records["refusal"] = {key: self._scrub(text) for key, text in records["refusal"].items()}
        return Frame("reply", records, reply.arrays, reply.aggregation_record)

    def _refusal(self, reason: str, hint: str) -> Frame:
        return self._frame(refusal(self._site_name, reason, hint, "error"))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            cancelled = job.cancelled

            def should_stop(cancelled: threading.Event = cancelled) -> bool:
                return cancelled.is_set() or self._stopping.is_set()

            try:
                job.outcome.set_result(self._answer(job.frame, should_stop))
            except BaseException as error:
                job.outcome.set_exception(error)


def _wait(outcome: Future[Any], seconds: float | None) -> bool:
    """Whether the job ended within ``seconds``."""
    try:
        outcome.exception(timeout=seconds)
    except TimeoutError:
        return outcome.done()
    return True


def _hung_up(connection: socket.socket) -> bool:
    """Whether the other end closed, or talks out of turn, which comes to the same."""
    readable, _, _ = select.select([connection], [], [], 0)
    return bool(readable)
