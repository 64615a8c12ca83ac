"""One action of ``actions.py`` in a folder, under the clock and the fault that the caller asks for.

::

    SHIFT_CLOCK=86400 LD_PRELOAD=faults.so python -m tests.chaos.perform ACTION FOLDER --prepare --kill-at 60
    SHIFT_CLOCK=-86400 LD_PRELOAD=faults.so python -m tests.chaos.perform ACTION FOLDER --again

Prints what the action leaves, as JSON, when it was not killed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import fault_library
from .actions import ACTIONS


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=sorted(ACTIONS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--kill-at", type=int, default=None)
    options = parser.parse_args()
    action, folder = ACTIONS[options.action](), options.folder.resolve()
    if options.prepare:
        folder.mkdir(parents=True)
        action.prepare(folder)
    if options.kill_at is not None:
        fault_library.arm(folder, fault_library.KILL, options.kill_at)
    action.perform(folder, options.again)
    fault_library.disarm()
    print(json.dumps(action.left(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
