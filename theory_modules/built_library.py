"""The modules' C code, where it was built at installation: found beside its callers, loaded with ctypes."""

from __future__ import annotations

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def built_library(name: str) -> ctypes.CDLL | None:
    """The library ``theory_modules/<name>``; ``None`` where there was no compiler, or another machine's."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(name + suffix)
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError:
                continue
    return None
