"""Who takes part: node id → hospital, as registered in the run directory's ``sites.json``.

    {"1234567890": "St. Anna", "987654321": {"name": "Mercy", "num-examples": 1200}}

The name given at registration is the one every event and table uses, whatever a reply claims.
A registered number of examples bounds the weight a site's update may claim. Without a
``sites.json`` every node may take part and is called ``node-<id>``. A node whose keys were revoked
(``revocations``) takes part in nothing from that moment on.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instahide.errors import InvalidInputError

from ..audit_log import SignedHead
from ..identity import load_public_identity
from ..messages import MAX_NAME


@dataclass(frozen=True, kw_only=True)
class Site:
    """A registered hospital; sizes are None where registration did not give them."""

    node_id: int
    name: str
    num_examples: int | None = None
    evaluate_num_examples: int | None = None
    identity_key: str = ""


class SiteBook:
    """Names and registered sizes by node id; ``open_to_all`` when nobody was registered.

    ``revoked`` is asked anew each time; by default nobody is.
    """

    def __init__(self, sites: Iterable[Site] = (), *, revoked: Container[int] = ()) -> None:
        self.sites = {site.node_id: site for site in sites}
        self.open_to_all = not self.sites
        self._revoked = revoked

    @classmethod
    def read(cls, path: Path, *, revoked: Container[int] = ()) -> SiteBook:
        """Read ``sites.json``; a missing file is an open book. Raises InvalidInputError."""
        if not path.exists():
            return cls(revoked=revoked)
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            sites = [_parse_site(key, value) for key, value in table.items()]
        except (ValueError, TypeError, AttributeError, KeyError) as problem:
            raise InvalidInputError(
                f"{path} is not a table of node id to hospital ({problem})", hint="register the sites again"
            ) from problem
        names = [site.name for site in sites]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise InvalidInputError(
                f"{path} names two sites {doubled[0]!r}", hint="give every site its own name"
            )
        return cls(sites, revoked=revoked)

    def knows(self, node_id: int) -> bool:
        """May this node take part?"""
        return (self.open_to_all or node_id in self.sites) and node_id not in self._revoked

    def is_revoked(self, node_id: int) -> bool:
        """Were this node's keys revoked?"""
        return node_id in self._revoked

    def expected(self) -> set[int]:
        """The registered nodes that may take part."""
        return {node_id for node_id in self.sites if node_id not in self._revoked}

    def name(self, node_id: int) -> str:
        """The hospital's registered name, or ``node-<id>``."""
        site = self.sites.get(node_id)
        return site.name if site else f"node-{node_id}"

    def signed(self, node_id: int, head: str) -> bool:
        """Whether an answer's audit head is by the key this site registered; true if it has none."""
        site = self.sites.get(node_id)
        if site is None or not site.identity_key:
            return True
        return bool(head) and SignedHead.from_text(head).is_by(site.identity_key)

    def names(self, node_ids: Iterable[int]) -> list[str]:
        """Registered names, sorted."""
        return sorted(self.name(node_id) for node_id in node_ids)


def _parse_site(key: str, value: Any) -> Site:
    entry: dict[str, Any] = {"name": value} if isinstance(value, str) else dict(value)
    name = entry.pop("name")
    sizes = {to: entry.pop(of, None) for of, to in _SIZES.items()}
    identity_key = entry.pop("identity-key", "")
    if identity_key:
        load_public_identity(identity_key)
    if entry:
        raise ValueError(f"unknown key {next(iter(entry))!r}")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise ValueError(f"the name {name!r:.100} is not printable text of up to {MAX_NAME} characters")
    for size in sizes.values():
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
            raise ValueError(f"the size {size!r:.100} of {name}")
    return Site(node_id=int(key), name=name, identity_key=identity_key, **sizes)


_SIZES = {"num-examples": "num_examples", "evaluate-num-examples": "evaluate_num_examples"}
