"""How a node receives: a message is whole before it is worked on, or it is gone.

Flower's SuperNode makes the ClientApp's task first, then pulls the objects of its message from
the coordinator and confirms them. Two things follow, both mended here around that one step:

* A task taken up meanwhile finds objects missing and looks again a second later, at every round.
  The relay takes no task while ``receiving`` is held.
* Where the run is stopped at that moment, Flower raises an exception that its own clean-up lets
  pass. The task stays behind and waits more than an hour for objects that never come, or it is
  answered and its stale reply is sent in place of the next run's. Either way the node answers no
  other run. Raised as an ordinary failure, the step takes message and task back by itself.

``guard`` refuses quietly (a warning, Flower's own way) if Flower's module does not look as known.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

log = logging.getLogger("node")

STEP = "_pull_and_store_message"
CALLS = ("pull_object", "confirm_message_received")  # of the step, made after the task exists


def guard(receiving: threading.Lock, loop_module: ModuleType) -> bool:
    """Let Flower's loop module receive under ``receiving``; False if it is not as known."""
    step = getattr(loop_module, STEP, None)
    if not callable(step) or not set(CALLS) <= set(inspect.signature(step).parameters):
        log.warning("Flower's loop receives in another way: a run stopped at a bad time may block this node")
        return False

    @functools.wraps(step)
    def receive_whole(**arguments: Any) -> Any:
        for name in CALLS:
            arguments[name] = _failing_ordinarily(arguments[name])
        with receiving:
            return step(**arguments)

    setattr(loop_module, STEP, receive_whole)
    return True


def _failing_ordinarily(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, but with an Exception where the run is not running any more."""
    from flwr.supercore.run import RunNotRunningException

    @functools.wraps(call)
    def called(*arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except RunNotRunningException as error:  # no Exception: a BaseException
            raise ConnectionAbortedError("the run is no longer running") from error

    return called
