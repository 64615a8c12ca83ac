"""Keys that are refused from now on: ``revoked.json`` in the study's folder.

    [{"node-id": 7, "name": "st-mary", "node-key": "SHA256:...", "identity-key": "SHA256:...",
      "time": UTC, "why": "revoked" | "replaced"}]

``instahide coordinator revoke`` and the exchange of keys write it; a run that is under way reads it
again whenever it has changed, so that a site revoked at noon is in no round from noon on. An entry
is never taken out: a hospital that comes back comes with new keys.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instahide.errors import IntegrityError

REVOCATIONS = "revoked.json"
REVOKED, REPLACED = "revoked", "replaced"


@dataclass(frozen=True, kw_only=True)
class Revocation:
    """One node key, with the identity key that went with it ("" where that one stays in use)."""

    node_id: int
    name: str
    node_key: str
    identity_key: str
    time: str
    why: str = REVOKED

    def to_mapping(self) -> dict[str, Any]:
        """The entry under kebab-case keys."""
        return {key.replace("_", "-"): value for key, value in vars(self).items()}


def read_revocations(path: Path) -> tuple[Revocation, ...]:
    """All entries, the oldest first; none where there is no file. Raises IntegrityError if damaged."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            Revocation(**{key.replace("-", "_"): value for key, value in row.items()}) for row in rows
        )
    except FileNotFoundError:
        return ()
    except (ValueError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{path} is damaged ({error})",
            hint="restore it from a copy: without it, nobody knows which keys are refused",
        ) from error


class RevokedNodes:
    """The node ids that are refused, as the file says now; without a file, none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._ids: frozenset[int] = frozenset()

    def __contains__(self, node_id: object) -> bool:
        self._look()
        return node_id in self._ids

    def _look(self) -> None:
        if self._path is None:
            return
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return  # entries are never taken out: what was read stays
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._ids |= {entry.node_id for entry in read_revocations(self._path)}
            self._stamp = stamp
