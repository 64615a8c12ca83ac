"""The hospitals of a run that is resumed: the same ones, under the node keys they have by now.

A hospital that exchanged its node key since the run began has another node id. It is the same
hospital if its name and its identity key are the same; only then is its line carried over. A run
gets no hospital that it did not have.
"""

from __future__ import annotations

import json
from typing import Any

from instahide.atomic import atomic_write_text
from instahide.errors import IntegrityError

from .study import SITES, Study


def carry_over(study: Study, run_name: str) -> list[str]:
    """Write the run's ``sites.json`` anew under today's node ids; names of those that changed.

    Raises IntegrityError if the file cannot be read.
    """
    path = study.run_folder(run_name) / SITES
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        now = {(site.name, site.identity_key): str(site.node_id) for site in study.sites()}
        moved = {number: now.get((row["name"], row["identity-key"]), number) for number, row in table.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(f"{path} cannot be read ({error})", hint="restore it from a copy") from error
    changed = [table[number]["name"] for number, new in moved.items() if new != number]
    if changed:
        rows = {new: table[number] for number, new in moved.items()}
        atomic_write_text(path, json.dumps(rows, indent=2) + "\n")
    return changed
