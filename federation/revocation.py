"""Taking a hospital out: its keys are refused at the door, in every run, and when they ask again.

The list of refused keys (``coordinator.revocations``) is what decides; everything else follows it:

    study      a site with a refused key is not one of the study's: in no new run, in no roster
    runs       a run under way asks it no more and takes no answer of it (``SiteBook.knows``)
    admission  a request under a refused key is turned down
    SuperLink  Flower forgets the node, at once if it is up, else at its next start before the
               gateway opens; from then on the node's calls are answered with 401

The audit log is written first, so that a revocation nobody can find out about does not happen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from instahide.atomic import atomic_write_text
from instahide.errors import InvalidInputError

from .coordinator.audit import open_audit_log
from .coordinator.revocations import REVOCATIONS, REVOKED, Revocation, read_revocations
from .identity import identity_fingerprint

if TYPE_CHECKING:  # it imports this module
    from .study import Study

MAX_REASON = 200


class Registered(Protocol):
    """A node as the SuperLink knows it."""

    @property
    def node_id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


class Registry(Protocol):
    """The part of the SuperLink's control interface that is needed here."""

    def list_nodes(self) -> Iterable[Registered]: ...
    def unregister_node(self, node_id: int) -> None: ...


def revoke(study: Study, name: str, *, reason: str = "") -> tuple[Revocation, bool]:
    """Refuse the keys of the hospital called ``name`` from now on; the entry, and whether it is new.

    Raises InvalidInputError if no hospital of that name was ever admitted, OSError if it cannot be
    written down.
    """
    if len(reason) > MAX_REASON or not (reason.isprintable() or not reason):
        raise InvalidInputError(
            f"a reason is one line of up to {MAX_REASON} characters", hint="shorten it; write more elsewhere"
        )
    site = next((site for site in study.sites() if site.name == name), None)
    if site is None:
        return _revoked_before(study, name), False
    identity = identity_fingerprint(site.identity_key)
    told = {"reason": reason} if reason else {}
    record = open_audit_log(study.path).append(
        "site-revoked", site=name, node_key=site.fingerprint, identity_key=identity, **told
    )
    entry = Revocation(
        node_id=site.node_id, name=name, node_key=site.fingerprint, identity_key=identity, time=record.time
    )
    refuse(study.path, [entry])
    return entry, True


def refuse(study: Path, entries: Iterable[Revocation]) -> None:
    """Add entries to the list of the study's folder, but for keys that are on it."""
    path = study / REVOCATIONS
    known = read_revocations(path)
    keys = {(entry.node_key, entry.identity_key) for entry in known}
    new = [entry for entry in entries if (entry.node_key, entry.identity_key) not in keys]
    if new:
        rows = [entry.to_mapping() for entry in (*known, *new)]
        atomic_write_text(path, json.dumps(rows, indent=2) + "\n", mode=0o600)


def take_off(study: Path, registry: Registry) -> list[str]:
    """Have the SuperLink forget every node whose key is refused; their names. May be done again."""
    refused = {entry.node_key for entry in read_revocations(study / REVOCATIONS)}
    taken = []
    for node in registry.list_nodes() if refused else ():
        if node.fingerprint in refused:
            registry.unregister_node(node.node_id)
            taken.append(node.name)
    return taken


def _revoked_before(study: Study, name: str) -> Revocation:
    for entry in reversed(study.revocations()):
        if entry.name == name and entry.why == REVOKED:
            return entry
    names = ", ".join(sorted(site.name for site in study.sites()))
    raise InvalidInputError(f"no hospital is called {name!r:.100}", hint=f"admitted: {names or 'none yet'}")
