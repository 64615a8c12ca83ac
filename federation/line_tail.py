"""New whole lines of a file that another process appends to, call by call."""

from __future__ import annotations

from pathlib import Path


class LineTail:
    """Reads on where the last call stopped; the file may come later, and may be replaced by a new one.

    A line without an end is left for the next call: its writer is at work, or was killed and the next
    one cuts it off.
    """

    def __init__(self, path: Path, *, from_start: bool = True) -> None:
        self._path = path
        self._offset = 0
        self.is_new_file = False
        """Whether the last call began another file: shorter than what was read, hence not the same."""
        if not from_start and path.exists():
            self._offset = path.read_bytes().rfind(b"\n") + 1

    def read(self) -> list[bytes]:
        """Whole lines since the last call, oldest first, without their ends."""
        self.is_new_file = False
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                self.is_new_file = size < self._offset
                if self.is_new_file:
                    self._offset = 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()
