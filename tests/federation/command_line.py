"""The ``instahide`` command as a user starts it: in the foreground, or left running in another window."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

INSTAHIDE = Path(sys.executable).with_name("instahide")
PATIENCE = 120.0  # seconds, for machines with much else to do
# One thread a process, as many processes share few cores here.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def until(condition: Callable[[], bool], within: float = PATIENCE) -> bool:
    """Wait for ``condition``; what it is in the end."""
    deadline = time.monotonic() + within
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def instahide(*words: object, code: int = 0) -> str:
    """Run a verb to its end, expect its exit code; its standard output (of a failure: its errors)."""
    command = [INSTAHIDE, *map(str, words)]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == code, f"{words}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    assert "Traceback" not in ended.stderr
    return ended.stdout if code == 0 else ended.stderr


class Window:
    """A verb that stays up, with its output (both streams) in a file."""

    def __init__(self, log: Path, *words: object) -> None:
        self._log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                # Whoever started the tests in the background has made SIGINT ignored: undone here.
                ["env", "--default-signal=INT", INSTAHIDE, *map(str, words)],
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        return self._log.read_text()

    def wait_for(self, words: str) -> None:
        """Wait until ``words`` are in the output."""
        until(lambda: words in self.text or self.process.poll() is not None)
        assert words in self.text, self.text

    def family(self) -> list[psutil.Process]:
        """The process and all its descendants."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def child(self, part: str) -> psutil.Process:
        """The descendant with ``part`` in its command line."""
        [found] = [one for one in self.family()[1:] if part in " ".join(one.cmdline())]
        return found

    def press_ctrl_c(self) -> tuple[int, list[str]]:
        """Interrupt as a terminal does; the exit code and what is left of the family, in words."""
        return self._send(signal.SIGINT)

    def terminate(self) -> tuple[int, list[str]]:
        """End it as a service manager does; as ``press_ctrl_c``."""
        return self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> tuple[int, list[str]]:
        family = self.family()
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        return code, [str(process) for process in psutil.wait_procs(family, timeout=2.0)[1]]

    def close(self) -> None:
        """After a failed test: leave nothing behind, whatever happened."""
        if self.process.poll() is None:
            for process in reversed(self.family()):
                process.kill()
        self.process.wait()


@contextmanager
def window(log: Path, *words: object) -> Iterator[Window]:
    """A verb left running while the block runs."""
    opened = Window(log, *words)
    try:
        yield opened
    finally:
        opened.close()


def write_digits(path: Path, first: int, *, training: int = 120, test: int = 60) -> Path:
    """Some of scikit-learn's digits as one hospital's file, with a test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)
    middle, last = first + training, first + training + test
    np.savez(
        path,
        x_train=images[first:middle],
        y_train=bunch.target[first:middle],
        x_test=images[middle:last],
        y_test=bunch.target[middle:last],
    )
    return path


def write_public(path: Path) -> Path:
    """Public images to mix with: digits that no hospital of these tests holds."""
    from sklearn.datasets import load_digits

    np.savez(path, x=(load_digits().images[1400:] * (255 / 16)).round().astype(np.uint8))
    return path
