"""How well private images are rebuilt from the encodings that a defence releases."""

from __future__ import annotations

from .data import FrontierData
from .defences import Defence
from .leaks import Leak
from .training import TrainedDefence


def recovery_of_encodings(defence: Defence, trained: TrainedDefence, data: FrontierData) -> Leak | None:
    return None
