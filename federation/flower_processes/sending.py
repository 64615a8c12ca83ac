"""How a node sends: all of a reply, also where an answer of the coordinator's is lost on the way.

Flower's SuperNode announces a reply, is told which of its objects to send and in which session, and sends
them. Where the connection breaks before an answer, it repeats what it said, and then (Flower 1.41):

* A reply announced twice is one that the SuperLink has: it asks for no object, so none is sent. Here all
  are, without a session, and the SuperLink finds the one that waits for them.
* An object sent twice is one that no session waits for: the SuperLink refuses it, and the node gives up
  the rest. Here the others are sent all the same.

Either way the coordinator would hold a reply without content, and wait minutes for it.

``guard`` refuses quietly (a warning, Flower's own way) if Flower's module does not look as known.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

log = logging.getLogger("node")

STEP: Final = "_push_messages"
ANNOUNCE: Final = "send"  # of the step: (reply, tree of its objects, seconds) -> objects to send, session
PUSH: Final = "push_object"  # of the step: (run, session, object, its octets)
ANY_SESSION: Final = ""


def guard(loop_module: ModuleType) -> bool:
    """Let Flower's loop module send replies whole; False if it is not as known."""
    step = getattr(loop_module, STEP, None)
    if not callable(step) or not {ANNOUNCE, PUSH} <= set(inspect.signature(step).parameters):
        log.warning("Flower's loop sends in another way: a reply on a broken connection may be lost")
        return False

    @functools.wraps(step)
    def send_whole(**arguments: Any) -> Any:
        arguments[ANNOUNCE] = _with_all_its_objects(arguments[ANNOUNCE])
        arguments[PUSH] = _going_on(arguments[PUSH])
        return step(**arguments)

    setattr(loop_module, STEP, send_whole)
    return True


def _with_all_its_objects(announce: Callable[..., Any]) -> Callable[..., Any]:
    """``announce``, but all objects are to be sent where none was asked for."""
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    @functools.wraps(announce)
    def announced(message: Any, object_tree: Any, *rest: Any) -> Any:
        wanted, session = announce(message, object_tree, *rest)
        if wanted:
            return wanted, session
        return {tree.object_id for tree in iterate_object_tree(object_tree)}, ANY_SESSION

    return announced


def _going_on(push: Callable[..., Any]) -> Callable[..., Any]:
    """``push``, but an object that is refused is not the end of the others."""
    from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

    @functools.wraps(push)
    def pushed(*arguments: Any) -> None:
        try:
            push(*arguments)
        except ObjectPushError:
            log.info("the coordinator has a part of this reply already, or has given the reply up")

    return pushed
