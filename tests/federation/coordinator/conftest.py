"""Makes ``fakes.py`` and ``update_examples.py`` importable by the tests beside them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for name, file in (("coordinator_fakes", "fakes.py"), ("update_examples", "update_examples.py")):
    specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(file))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
