"""The worker's log: what happened, and never to whom.

No path, file name, subject id or weight is logged at INFO or above. Faults are logged by type
and place in our code, not by message, because messages of libraries quote file names; the text
and the traceback go to DEBUG, which is off.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

logger = logging.getLogger(__name__)


def describe_fault(error: BaseException) -> str:
    """The type of ``error`` and the line of code it came from; details at DEBUG only."""
    logger.debug("details of a fault", exc_info=error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def path_scrubber(paths: Mapping[str, Path]) -> Callable[[str], str]:
    """A function that writes ``<key>`` wherever a text has the path of that key (longest first)."""
    known = sorted(
        (
            (text, f"<{key}>")
            for key, path in paths.items()
            for text in {str(path), str(path.resolve())}
            if len(text) > 1
        ),
        key=lambda pair: -len(pair[0]),
    )

    def scrub(text: str) -> str:
        for path, name in known:
            text = text.replace(path, name)
        return text

    return scrub


class _Scrubbed(logging.Formatter):
    """Formats a record, then takes the site's paths out of it."""

    def __init__(self, scrub: Callable[[str], str]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._scrub = scrub

    def format(self, record: logging.LogRecord) -> str:
        return self._scrub(super().format(record))


def set_up_logging(scrub: Callable[[str], str], *, level: int = logging.INFO) -> None:
    """Log to standard error through ``scrub``; Python warnings become log lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Scrubbed(scrub))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
