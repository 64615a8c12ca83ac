"""The two files of a status, written so that nothing depends on them.

    status.html     for people        metrics.prom    for Prometheus' textfile collector

Each is replaced atomically: a reader sees the old or the new one, whole. What cannot be written or
worked out (a full disk, a damaged file) is said once, and once more when it works again; it never reaches
the run or the service that is watched.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from instahide.atomic import atomic_write_text
from instahide.errors import InvalidInputError

PAGE: Final = "status.html"
METRICS: Final = "metrics.prom"


class StatusFiles:
    """Page and metrics in ``folder``; ``say`` gets a line when writing begins to fail or works again.

    They are readable for other users (a web server, node_exporter), whom the folder's own mode keeps
    out where it is private.

    Raises:
        InvalidInputError: there is no such folder.
    """

    def __init__(self, folder: Path, *, say: Callable[[str], None]) -> None:
        if not folder.is_dir():
            raise InvalidInputError(
                f"there is no folder {folder} for the status page", hint=f"mkdir -p {folder}"
            )
        self.folder, self._say = folder, say
        self._has_failed = False
        for name in (PAGE, METRICS):  # what a killed writer left; there is one writer a folder
            for piece in folder.glob(f".{name}.*.partial"):
                piece.unlink(missing_ok=True)

    def write(self, make: Callable[[], tuple[str, str]]) -> bool:
        """Write what ``make`` returns (page, metrics); whether that worked. Raises nothing."""
        try:
            page, metrics = make()
            atomic_write_text(self.folder / PAGE, page)
            atomic_write_text(self.folder / METRICS, metrics)
        except Exception as error:  # a view must not end what it shows, whatever is wrong with it
            if not self._has_failed:
                self._say(f"the status page cannot be written ({_in_words(error)}); the service goes on")
            self._has_failed = True
            return False
        if self._has_failed:
            self._say("the status page is written again")
        self._has_failed = False
        return True


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return f"{type(error).__name__}: {error}".splitlines()[0]
