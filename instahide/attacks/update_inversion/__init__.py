"""Update inversion: from a gradient or an update that a server receives back to the site's inputs.

    view = read_update(path)                        what the server saw
    result, inversion = attack_update(view)         verdict, and the images

Whoever trains on encodings sends updates of encodings: what comes back is the encoding, and then the
attacks on encodings apply as if it had been released. See ``released.py``.
"""

from __future__ import annotations

from .attack import attack_update
from .capture import read_truth, read_update, write_update
from .defences import defend, securely_aggregated
from .inversion import Inversion, InversionSettings, invert
from .local_update import observe
from .networks import NETWORK_NAMES, build_network
from .released import view_of_recovered
from .round_checkpoints import read_round_checkpoints
from .trap_weights import TRAP_KINDS, read_traps, set_traps
from .view import Defence, LocalTraining, UpdateView

__all__ = [
    "NETWORK_NAMES",
    "TRAP_KINDS",
    "Defence",
    "Inversion",
    "InversionSettings",
    "LocalTraining",
    "UpdateView",
    "attack_update",
    "build_network",
    "defend",
    "invert",
    "observe",
    "read_round_checkpoints",
    "read_traps",
    "read_truth",
    "read_update",
    "securely_aggregated",
    "set_traps",
    "view_of_recovered",
    "write_update",
]
