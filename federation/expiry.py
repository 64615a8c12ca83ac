"""What to say about certificates that end within thirty days, or have: at each start, run and join.

The judgement is the doctor's (``doctor.files.validity``); here only who has which certificates.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from instahide.errors import InstaHideError

if TYPE_CHECKING:
    from .doctor import Outcome
    from .node_folder import NodeFolder
    from .study import Study


def study_warnings(study: Study) -> list[str]:
    """One line for each certificate of a coordinator that ends soon, with what to do; [] if none does."""
    from .doctor.coordinator import NEW_AUTHORITY, RENEW
    from .flower_processes.superlink import CoordinatorFolder

    folder = CoordinatorFolder(study.path)
    certificates: dict[str, tuple[Path, str]] = {
        "gateway's certificate": (folder.gateway.certificate, RENEW),
        "SuperLink's certificate": (folder.superlink.certificate, RENEW),
        "authority's certificate": (folder.authority.certificate, NEW_AUTHORITY),
    }
    if folder.gateway_authority != folder.authority.certificate:
        certificates["gateway's authority"] = (folder.gateway_authority, RENEW)
    return [line for name, (path, fix) in certificates.items() for line in _judged(name, path, fix)]


def node_warnings(folder: NodeFolder) -> list[str]:
    """The same for what a joined hospital holds: the authority it trusts."""
    from .doctor.node import JOIN

    if not folder.authority.exists():
        return []
    return _judged("certificate of the coordinator's authority", folder.authority, JOIN)


def gateway_warnings(folder: NodeFolder) -> list[str]:
    """The same for the certificate the gateway shows to this node; [] where it cannot be reached."""
    from .doctor.network import check_expiry, parse_address
    from .flower_processes.node import load_settings

    def look() -> Outcome:
        settings = load_settings(folder.node_config)
        return check_expiry(parse_address(settings.coordinator, settings.authority))

    return _in_words("certificate that the coordinator's gateway shows", look)


def _judged(name: str, path: Path, fix: str) -> list[str]:
    from .doctor.files import read_certificate, validity

    return _in_words(name, lambda: validity(read_certificate(path), renew=fix))


def _in_words(name: str, look: Callable[[], Outcome]) -> list[str]:
    from .doctor import State

    try:
        outcome = look()
    except (InstaHideError, OSError):
        return []  # what cannot be read is the doctor's to explain
    if outcome.state not in (State.warning, State.failed):
        return []
    return [f"warning: the {name} {outcome.seen}: {outcome.fix}"]
