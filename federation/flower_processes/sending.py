"""How a node sends: all of a reply, also where the coordinator's first answer to it was lost.

Flower's SuperNode announces a reply, is told which of its objects to send, and sends them. Where the
connection breaks between the announcement and its answer, it announces the reply once more. The SuperLink
has it already and asks for no objects (Flower 1.41), so none is sent: the coordinator holds a reply
without content, and waits minutes for it. Here a reply for which no object is asked is sent whole; what the
SuperLink has already it leaves as it is.

``guard`` refuses quietly (a warning, Flower's own way) if Flower's module does not look as known.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

log = logging.getLogger("node")

STEP = "_push_messages"
CALL = "send"  # of the step: (reply, tree of its objects, seconds) -> objects to send, session


def guard(loop_module: ModuleType) -> bool:
    """Let Flower's loop module send replies whole; False if it is not as known."""
    step = getattr(loop_module, STEP, None)
    if not callable(step) or CALL not in inspect.signature(step).parameters:
        log.warning("Flower's loop sends in another way: a reply on a broken connection may be lost")
        return False

    @functools.wraps(step)
    def send_whole(**arguments: Any) -> Any:
        arguments[CALL] = _asked_for_something(arguments[CALL])
        return step(**arguments)

    setattr(loop_module, STEP, send_whole)
    return True


def _asked_for_something(send: Callable[..., Any]) -> Callable[..., Any]:
    """``send``, but all objects are to be sent where none was asked for."""
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    @functools.wraps(send)
    def sent(message: Any, object_tree: Any, *rest: Any) -> Any:
        wanted, session = send(message, object_tree, *rest)
        return wanted or {tree.object_id for tree in iterate_object_tree(object_tree)}, session

    return sent
