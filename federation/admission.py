"""Which keys a hospital may ask with: new ones, its own again, or new ones that its own have signed.

    the key was revoked                                   no
    the name or the identity key is another hospital's    no
    a key of this hospital is another than before         only if the one before signed the request
    else                                                  yes

Signatures were checked when the request was read (``joining.read_request``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from instahide.errors import RefusedError

from .coordinator.revocations import REPLACED, Revocation
from .identity import identity_fingerprint
from .joining import JoinRequest


class Admitted(Protocol):
    """A hospital that is in: its name and keys."""

    @property
    def node_id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def identity_key(self) -> str: ...


def admitted_before(request: JoinRequest, sites: Sequence[Admitted]) -> Admitted | None:
    """The hospital that asks, by its node key or the one it replaces; None if it is new."""
    keys = {request.fingerprint, *request.replaced}
    return next((site for site in sites if site.fingerprint in keys), None)


def check_keys(request: JoinRequest, sites: Sequence[Admitted], revocations: Iterable[Revocation]) -> None:
    """Return quietly if the hospital may ask with these keys. Raises RefusedError with what to do."""
    for entry in revocations:
        if request.fingerprint == entry.node_key or request.identity == entry.identity_key:
            which = "node key" if request.fingerprint == entry.node_key else "identity key"
            raise RefusedError(
                f"the {which} of {request.name} was {entry.why} on {entry.time[:10]}",
                hint="make new keys there with `instahide node rotate NODE --new-identity`, and compare the "
                "new safety number by telephone",
            )
    before = admitted_before(request, sites)
    for site in sites:
        if site is before:
            continue
        if site.name == request.name:
            raise RefusedError(
                f"{request.name} is already admitted with another key ({site.fingerprint})",
                hint="for new keys of the same hospital: `instahide node rotate` there, or, where the old "
                f"ones are lost, `instahide coordinator revoke STUDY {request.name}`; else take another name",
            )
        if identity_fingerprint(site.identity_key) == request.identity:
            raise RefusedError(
                f"{request.name} has the identity key of {site.name}",
                hint="a copied folder? make each hospital's keys with `instahide node init`",
            )
    if before is None:
        return
    identity = identity_fingerprint(before.identity_key)
    if request.identity != identity and identity not in request.replaced:
        raise RefusedError(
            f"{request.name} has another identity key than before, and the one before did not sign that",
            hint="`instahide node rotate NODE --new-identity` at the hospital makes a request that it signs",
        )


def replaced_keys(request: JoinRequest, sites: Sequence[Admitted], *, time: str) -> Revocation | None:
    """The keys that ``request`` puts out of use, to be refused from now on; None if it replaces none."""
    if not request.replaced:
        return None
    before = admitted_before(request, sites)
    node_key, *identity = request.replaced
    return Revocation(
        node_id=0 if before is None or before.fingerprint == request.fingerprint else before.node_id,
        name=request.name,
        node_key=node_key,
        identity_key=identity[0] if identity else "",
        time=time,
        why=REPLACED,
    )
