"""Sites of a run with secure aggregation in one process: real sessions over updates that are made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from federation.hidden_sum import roster_entry
from federation.identity import Identity
from federation.messages import CONFIRM, EVALUATE, SESSION, UNMASK, RoundRequest, SiteReply
from federation.site.masked_rounds import MaskedRounds
from federation.site.policy import Policy
from instahide.errors import InstaHideError

from .fakes import refuse

SITES = {node: f"site-{node}" for node in (11, 12, 13, 14, 15)}
SIZES = {11: 100, 12: 250, 13: 400, 14: 50, 15: 1000}
MODES = ("plain", "one-view", "ten-views")
ALL_METRICS = {
    "num-examples",
    "evaluate-num-examples",
    "train-loss",
    "train-seconds",
    "worker-seconds",
    *(f"evaluate-{what}-{mode}" for what in ("accuracy", "loss") for mode in MODES),
}


class Hospitals:
    """Sites that train towards targets of their own and answer through their real session.

    ``misbehave(node, request, reply)`` returns what arrives instead of ``reply``.
    """

    def __init__(self, sites: Mapping[int, str] = SITES, length: int = 16) -> None:
        self.sites, self.length = sites, length
        self.keys = {node: Ed25519PrivateKey.generate() for node in sites}
        self.workers: dict[int, MaskedRounds] = {}
        self.start(*sites)
        self.misbehave: Callable[[int, RoundRequest, SiteReply], Any] = lambda node, request, reply: reply
        self.asked: list[tuple[int, str, int]] = []

    def start(self, *nodes: int) -> None:
        """(Re)start workers: their sessions are gone."""
        for node in nodes:
            self.workers[node] = MaskedRounds(self.sites[node], partial(self._key_of, node))

    @property
    def roster(self) -> tuple[str, ...]:
        return tuple(
            roster_entry(self.sites[node], Identity(key).public_line) for node, key in self.keys.items()
        )

    def _key_of(self, node: int) -> Ed25519PrivateKey:
        return self.keys[node]

    def __call__(self, node: int, request: RoundRequest) -> Any:
        self.asked.append((node, request.kind, request.server_round))
        try:
            reply = SiteReply(site_name=self.sites[node], aggregation_record=self.record(node, request))
        except InstaHideError as problem:
            reply = refuse(problem.message, kind="policy")
        return self.misbehave(node, request, reply)

    def record(self, node: int, request: RoundRequest) -> bytes:
        worker = self.workers[node]
        if request.kind == SESSION:
            return worker.open_session(request, self.length, Policy(allowed_metrics=tuple(ALL_METRICS)))
        if request.kind == CONFIRM:
            return worker.confirm(request)
        if request.kind == UNMASK:
            return worker.unmask(request)
        worker.check(request)
        change = None if request.kind == EVALUATE else change_of(node, request.server_round, self.length)
        return worker.report(request, change, metrics_of(node))


def change_of(node: int, server_round: int, length: int = 16) -> NDArray[np.float32]:
    return np.random.default_rng([node, server_round]).uniform(-1, 1, length).astype(np.float32)


def metrics_of(node: int) -> dict[str, int | float]:
    accuracies = {f"evaluate-accuracy-{mode}": node / 20 for mode in MODES}
    losses = {f"evaluate-loss-{mode}": node / 10 for mode in MODES}
    counts = {"num-examples": SIZES[node], "evaluate-num-examples": node}
    return (
        counts | accuracies | losses | {"train-loss": 0.1 * node, "train-seconds": 0.5, "worker-seconds": 0.7}
    )
