"""What every action of a sweep is: it writes files, can be repeated, and can be checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .whole_files import half_files


class Action:
    """Something the product does with files."""

    def prepare(self, folder: Path) -> None:
        """Make what has to be there before."""

    def perform(self, folder: Path, again: bool) -> None:
        """Do it; ``again`` after a fault. Raises what the product raises."""
        raise NotImplementedError

    def look(self, folder: Path) -> list[str]:
        """What is wrong with the files that lie there, in words."""
        return half_files(folder)

    def lost(self, folder: Path) -> int:
        """Rounds that had to be done twice."""
        return 0

    def phase(self, folder: Path, label: str) -> str:
        """What was being done when the fault came, in words; ``label`` is the step's."""
        return ""

    def left(self, folder: Path) -> Any:
        """What must be the same with and without a fault, as plain JSON."""
        return None
