"""Builds ``faults.c`` and talks to it: faults at the border between a program and the kernel.

The library is loaded ahead of the C library (``LD_PRELOAD``), so that it sees what Python, SQLite
and safetensors' Rust alike do to files, with nothing patched inside the product. A machine
without a C compiler, or one that is not Linux, skips the tests that need it, and says so.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

COUNT, KILL, FULL = 0, 1, 2
KINDS = {"count": COUNT, "kill": KILL, "full": FULL}
SOURCE = Path(__file__).with_name("faults.c")


def is_available() -> bool:
    """Whether faults can be injected on this machine."""
    return sys.platform == "linux" and shutil.which("cc") is not None


def build(folder: Path) -> Path:
    """The compiled library in ``folder``."""
    library = folder / "faults.so"
    if not library.exists():
        command = ["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
    return library


def environment(library: Path, *, shift_clock: int = 0) -> dict[str, str]:
    """Of a process under the library: one thread for arithmetic, its wall clock shifted by whole seconds."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return os.environ | threads | {"LD_PRELOAD": str(library), "SHIFT_CLOCK": str(shift_clock)}


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.step_label.restype = ctypes.c_char_p
    library.disarm_faults.restype = ctypes.c_long
    library.arm_faults.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long]
    library.step_label.argtypes = [ctypes.c_long]
    return library


def arm(folder: Path, kind: int, at: int = 0) -> None:
    """From here on calls that change ``folder`` are counted, and one of them fails."""
    _library().arm_faults(os.fsencode(folder), kind, at)


def disarm() -> list[str]:
    """No more faults; what the steps were, in order."""
    number = _library().disarm_faults()
    return [_library().step_label(step).decode() for step in range(number)]
