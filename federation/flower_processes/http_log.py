"""What a node's log keeps of its HTTP calls: those that were refused.

Flower's SuperNode ends itself by a signal when it is told "401 Unauthorized" (Flower 1.41), and then says
only that it "terminated gracefully". The line of the call that was refused is the only trace of the reason,
and what ``explain_node_exit`` reads it from; a line a call, several a second, nobody wants.
"""

from __future__ import annotations

import logging
from typing import Final

FIRST_REFUSAL: Final = 400
_STATUS: Final = 3  # of httpx's arguments: method, URL, version, status, words


def keep_refused_calls() -> None:
    """Let httpx log calls that were refused, and warnings, but not those that went well."""
    logger = logging.getLogger("httpx")
    logger.setLevel(logging.INFO)
    logger.addFilter(_is_worth_a_line)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.WARNING:
        return True
    arguments = record.args
    status = arguments[_STATUS] if isinstance(arguments, tuple) and len(arguments) > _STATUS else None
    return isinstance(status, int) and status >= FIRST_REFUSAL
