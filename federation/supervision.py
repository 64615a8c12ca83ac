"""Child processes that are started, watched, restarted, and never left behind.

``ManagedProcess`` runs one program in a process group of its own with its output in a log file;
``stop`` asks the whole group to end and, after a grace time, kills it. ``RestartedProcess``
keeps such a program up: after each exit it waits (1, 2, 4 ... seconds, at most ``longest_wait``)
and starts it again, and says in words why it ended if ``explain`` can read that from the log.

Nothing outlives us, whatever ends us. A normal exit and Ctrl-C stop the children through
``atexit``. For the rest - SIGTERM's default action, SIGKILL, the kernel's out-of-memory killer -
there is one guardian (``guardian.py``): a bare Python process that holds the reading end of a
pipe and the list of our process groups. When we die the kernel closes the writing end; the
guardian sees the end of the file, asks every group to stop, and kills what is left after the
grace time. (The kernel's own "parent died" signal would not do: it is tied to the thread that
forked, and it reaches the child but none of the child's children.)
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from instahide.errors import FederationError

STOP_SECONDS = 8.0
PRIVATE_UMASK = 0o077

_GUARDIAN_PROGRAM = Path(__file__).with_name("guardian.py")


class _Guardian:
    """Our side of the pipe to the guardian process; started with the first child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def tell(self, verb: str, group: int) -> None:
        with self._lock:
            if self._process is None or self._owner != os.getpid():
                self._start()
            assert self._process is not None
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(f"{verb} {group}\n")
                self._process.stdin.flush()
            except BrokenPipeError:  # somebody killed the guardian: the next child gets a new one
                self._process = None

    def _start(self) -> None:
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARDIAN_PROGRAM), str(STOP_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def close(self) -> None:
        """Let the guardian go, at our normal end, when no child is left."""
        with self._lock:
            if self._process is not None and self._owner == os.getpid():
                with contextlib.suppress(OSError):
                    assert self._process.stdin is not None
                    self._process.stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=STOP_SECONDS + 1)
            self._process = None


_guardian = _Guardian()
_running: set[ManagedProcess] = set()


@atexit.register
def stop_everything() -> None:
    """Stop every child that is still up; runs by itself when the interpreter ends."""
    children = list(_running)
    for child in children:
        child.ask_to_stop()
    for child in children:
        child.stop()
    _guardian.close()


class ManagedProcess:
    """One program in its own process group, its output appended to ``log_path`` (mode 0600)."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.log_path = log_path
        self.environment = None if environment is None else dict(environment)
        self.folder = folder
        self.stop_seconds = stop_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self) -> Self:
        """Start the program. Raises FederationError if it cannot be started or is already up."""
        if self.is_running:
            raise FederationError(f"{self.name} is already running", hint="stop it first")
        self.log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._log_start = os.fstat(descriptor).st_size
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
                umask=PRIVATE_UMASK,
            )
        except OSError as error:
            raise FederationError(
                f"{self.name} cannot be started: {error}", hint=f"the command was {self.command[0]}"
            ) from error
        finally:
            os.close(descriptor)
        _guardian.tell("watch", self._process.pid)
        _running.add(self)
        return self

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        if self._process is None:
            raise FederationError(f"{self.name} was never started", hint="call start() first")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Exit status; negative is the number of the signal that killed it; None while up."""
        return None if self._process is None else self._process.poll()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end, at most ``timeout`` seconds; the exit status, or None if still up."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def wait_until(self, ready: Callable[[], bool], *, within: float, every: float = 0.05) -> Self:
        """Wait until ``ready()``; FederationError with the log's end if it exits or takes too long."""
        deadline = time.monotonic() + within
        while not ready():
            if not self.is_running:
                raise FederationError(
                    f"{self.name} ended (status {self.exit_code}) before it was ready:\n{self.log_tail()}",
                    hint=f"its whole output is in {self.log_path}",
                )
            if time.monotonic() > deadline:
                raise FederationError(
                    f"{self.name} was not ready within {within:g} s:\n{self.log_tail()}",
                    hint=f"its whole output is in {self.log_path}",
                )
            time.sleep(every)
        return self

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of this start's output."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._log_start)
                text = log.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def ask_to_stop(self) -> None:
        """Send the group SIGTERM and return at once."""
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGTERM)

    def stop(self) -> int | None:
        """End the whole group: SIGTERM, then SIGKILL after ``stop_seconds``. The exit status."""
        if self._process is None:
            return None
        group = self._process.pid
        self.ask_to_stop()
        deadline = time.monotonic() + self.stop_seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        while group_members(group) and time.monotonic() < deadline:
            time.sleep(0.1)
        _signal_group(group, signal.SIGKILL)
        status = self._process.wait()
        self._forget()
        return status

    def kill(self) -> None:
        """End the whole group at once, as a crash would (for tests)."""
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._forget()

    def clear_leftovers(self) -> None:
        """After the program's own end: kill what it left in its group."""
        if self._process is not None and self._process.poll() is not None:
            _signal_group(self._process.pid, signal.SIGKILL)
            self._forget()

    def _forget(self) -> None:
        if self in _running and self._process is not None:
            _running.discard(self)
            _guardian.tell("forget", self._process.pid)

    def __enter__(self) -> Self:
        return self if self.is_running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class RestartedProcess:
    """Keeps a program up: starts it again after every exit, waiting longer each time.

    The wait doubles from ``first_wait`` to ``longest_wait`` seconds and falls back to the first
    after the program stayed up for ``steady_after`` seconds. ``explain`` turns (exit status, end
    of the log) into a sentence or None; ``on_exit`` is told (exit status, sentence, wait).
    """

    def __init__(
        self,
        process: ManagedProcess,
        *,
        first_wait: float = 1.0,
        longest_wait: float = 10.0,
        steady_after: float = 30.0,
        explain: Callable[[int, str], str | None] | None = None,
        on_exit: Callable[[int, str | None, float], None] | None = None,
    ) -> None:
        self.process = process
        self.first_wait = first_wait
        self.longest_wait = longest_wait
        self.steady_after = steady_after
        self.explain = explain
        self.on_exit = on_exit
        self.restarts = 0
        self.last_exit_code: int | None = None
        self.last_reason: str | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Start the program and the thread that watches it."""
        self._stopping.clear()
        self.process.start()
        self._thread = threading.Thread(target=self._watch, name=f"watch-{self.process.name}", daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        wait = self.first_wait
        while True:
            started = time.monotonic()
            status = self._wait_for_exit()
            if status is None:
                return
            if time.monotonic() - started >= self.steady_after:
                wait = self.first_wait
            self.process.clear_leftovers()
            self.last_exit_code = status
            self.last_reason = self.explain(status, self.process.log_tail(200)) if self.explain else None
            if self.on_exit is not None:
                self.on_exit(status, self.last_reason, wait)
            if self._stopping.wait(wait):
                return
            wait = min(2 * wait, self.longest_wait)
            self.restarts += 1
            try:
                self.process.start()
            except FederationError as error:  # the program or its folder is gone: nothing to retry
                self.last_reason = str(error)
                return

    def _wait_for_exit(self) -> int | None:
        """The exit status, or None when we are asked to stop."""
        while not self._stopping.is_set():
            if (status := self.process.wait(0.2)) is not None:
                return status
        return None

    def stop(self) -> None:
        """Stop watching, then stop the program."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self.process.stop()

    def __enter__(self) -> Self:
        return self if self._thread is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def group_members(group: int) -> list[int]:
    """Ids of the living (not zombie) processes of a process group."""
    members = []
    for process in psutil.process_iter(["pid", "status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        with contextlib.suppress(OSError):
            if os.getpgid(process.info["pid"]) == group:
                members.append(process.info["pid"])
    return members


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago; another program may still take it before you do."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
