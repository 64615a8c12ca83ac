"""One action of the product, hit by a fault at every one of its steps, then repeated without one.

::

    LD_PRELOAD=faults.so python -m tests.chaos.sweep ACTION FOLDER --fault kill|full [--every N]

A step is a call that changes a file: create, write, fsync, rename, unlink, truncate, mkdir. For each
step a child process performs the action in a folder of its own and is killed there (a write half
done), or finds the disk full from there on. What is then on the disk is looked at: no file may be half
a file. A second child, without faults, does the action again, as a restarted program would, and what
it leaves is compared with what an undisturbed run leaves.

Prints one JSON object a step: ``label``, how it ``ended`` ("killed", "done" or "error"), ``error`` and
``hint``, what was found wrong (``faults``, words; [] is survival), the ``phase`` it was in, ``lost``
(rounds begun twice) and ``seconds`` until the action was done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import fault_library
from .action import Action
from .actions import ACTIONS


def in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """Run ``work`` in a fork; its exit status (negative: a signal) and what it returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            answer = json.dumps(work()).encode()
            status = 0
        except BaseException:
            answer, status = json.dumps(traceback.format_exc()).encode(), 70
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(answer)
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(answer) if answer else None


def describe(error: BaseException) -> dict[str, str]:
    """An error in the form the command line prints it."""
    from instahide.errors import InstaHideError

    if isinstance(error, InstaHideError):
        return {"ended": "error", "error": error.message, "hint": error.hint}
    if isinstance(error, OSError):  # federation.cli gives every one of these the same hint
        return {"ended": "error", "error": error.strerror or str(error), "hint": "free space"}
    return {"ended": "fault", "error": f"{type(error).__name__}: {error}", "hint": ""}


def disturbed(action: Action, folder: Path, fault: int, at: int) -> dict[str, Any]:
    """What becomes of the action under a fault (it does not return when it is killed)."""
    fault_library.arm(folder, fault, at)
    try:
        action.perform(folder, False)
    except BaseException as error:
        ended = describe(error)
    else:
        ended = {"ended": "done", "error": "", "hint": ""}
    return ended | {"steps": fault_library.disarm()}


def repeated(action: Action, folder: Path, label: str) -> dict[str, Any]:
    """What lies there after the fault, and after the action was done again."""
    faults, phase = action.look(folder), action.phase(folder, label)
    began = time.perf_counter()
    try:
        action.perform(folder, True)
    except Exception as error:
        failed = describe(error)
        faults.append(f"not repeated: {failed['error']} ({failed['hint']})")
        return {"faults": faults, "seconds": 0.0, "lost": 0, "phase": phase, "left": None}
    seconds = time.perf_counter() - began
    lost, left = action.lost(folder), action.left(folder)
    return {"faults": faults, "seconds": seconds, "lost": lost, "phase": phase, "left": left}


def one_step(action: Action, folder: Path, fault: int, step: tuple[int, str], wanted: Any) -> dict[str, Any]:
    """One line of the sweep's result."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folder.parent / "before", folder)
    at, label = step
    status, ended = in_child(lambda: disturbed(action, folder, fault, at))
    if status == -signal.SIGKILL:
        ended = {"ended": "killed", "error": "", "hint": ""}
    elif status:
        ended = {"ended": "fault", "error": str(ended), "hint": ""}
    faults = _wrong_about_a_full_disk(ended, folder) if fault == fault_library.FULL else []
    status, again = in_child(lambda: repeated(action, folder, label))
    if status:
        words = f"the second process ended with {status}: {again}"
        again = {"faults": [words], "seconds": 0.0, "lost": 0, "phase": "", "left": None}
    faults += again["faults"]
    if not faults and (different := _differences(again["left"], wanted)):
        faults.append(f"differs from an undisturbed run: {different}")
    if ended["ended"] == "fault":
        faults.append(ended["error"])
    shutil.rmtree(folder, ignore_errors=True)
    kept = {key: again[key] for key in ("lost", "seconds", "phase")}
    return kept | {key: ended[key] for key in ("ended", "error", "hint")} | {"faults": faults}


def _wrong_about_a_full_disk(ended: dict[str, Any], folder: Path) -> list[str]:
    """An error has to come with a hint, and pieces of files are not to take up the space that is left."""
    faults = []
    if ended["ended"] == "error" and not ended["hint"]:
        faults.append(f"no hint with the error {ended['error']!r}")
    if pieces := [path.name for path in folder.rglob("*.partial")]:
        faults.append(f"pieces of files are left: {pieces}")
    return faults


def _differences(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        return ", ".join(key for key in sorted(found | wanted) if found.get(key) != wanted.get(key))
    return "" if found == wanted else f"{found!r:.100} instead of {wanted!r:.100}"


def main() -> int:
    """The command line of the sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=sorted(ACTIONS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fault", choices=("kill", "full"), required=True)
    parser.add_argument("--every", type=int, default=1, help="every so many steps (a faster, coarser sweep)")
    options = parser.parse_args()
    action, fault = ACTIONS[options.action](), fault_library.KINDS[options.fault]
    folder = options.folder.resolve()
    before, step = folder / "before", folder / "step"  # every time the same path: it is in some files
    before.mkdir(parents=True)
    action.prepare(before)
    shutil.copytree(before, step)
    action.perform(step, False)  # here only for its imports, which the children need not repeat
    shutil.rmtree(step)
    shutil.copytree(before, step)

    def undisturbed() -> dict[str, Any]:
        ended = disturbed(action, step, fault_library.COUNT, 0)
        assert ended["ended"] == "done", ended
        return ended | {"left": action.left(step), "faults": action.look(step)}

    status, reference = in_child(undisturbed)
    if status or reference["faults"]:
        print(reference, file=sys.stderr)
        return 1
    for at, label in list(enumerate(reference["steps"]))[:: options.every]:
        row = one_step(action, step, fault, (at, label), reference["left"])
        print(json.dumps({"step": at, "label": label} | row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
