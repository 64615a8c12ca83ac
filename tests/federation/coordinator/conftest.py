"""Makes ``fakes.py`` importable as ``coordinator_fakes`` by the tests beside it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

specification = importlib.util.spec_from_file_location(
    "coordinator_fakes", Path(__file__).with_name("fakes.py")
)
assert specification is not None
assert specification.loader is not None
module = importlib.util.module_from_spec(specification)
sys.modules["coordinator_fakes"] = module
specification.loader.exec_module(module)
