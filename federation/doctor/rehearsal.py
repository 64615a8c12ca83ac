"""One round with the product's own coordinator, a real site worker over its socket, and stand-ins.

    coordinator   ``coordinator.rounds``: asks, checks every answer, aggregates, writes down
    the site      a worker process behind a Unix socket, asked in frames, as the relay asks it
    other sites   stand-ins in this process, which send the weights back as they came; with secure
                  aggregation they take their real part in the sum

What is left out is Flower and the network, which the doctor's other checks look at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from instahide.atomic import atomic_write_text

from ..config import RunConfig
from ..coordinator.grid import GridReply
from ..frames import BUNDLE_KEY, Frame, ask
from ..hidden_sum import roster_entry, to_vector
from ..identity import Identity
from ..messages import CONFIRM, EVALUATE, SESSION, TRAIN, UNMASK, RoundRequest, SiteReply
from ..site.masked_rounds import MaskedRounds
from .dummy_site import BUNDLE, DummySite

SITE_NODE = 1


class StandIns:
    """The other sites of a round; ``names`` by node id."""

    def __init__(self, count: int, dummy: DummySite) -> None:
        self._policy, self._examples = dummy.facts.policy, dummy.facts.num_images
        self.names = {SITE_NODE + number: f"stand-in-{number}" for number in range(1, count + 1)}
        self.keys = {node: Ed25519PrivateKey.generate() for node in self.names}
        self._sessions = {
            node: MaskedRounds(name, partial(self.keys.__getitem__, node))
            for node, name in self.names.items()
        }

    @property
    def roster(self) -> tuple[str, ...]:
        """Their entries of the setting ``roster``."""
        return tuple(
            roster_entry(name, Identity(self.keys[node]).public_line) for node, name in self.names.items()
        )

    def answer(self, node: int, request: RoundRequest) -> SiteReply:
        """What a site without any change of its own would answer."""
        name = self.names[node]
        if request.secure_aggregation:
            return SiteReply(site_name=name, aggregation_record=self._record(node, request))
        weights = dict(request.arrays) if request.kind == TRAIN else {}
        return SiteReply(site_name=name, arrays=weights, metrics=self._metrics(request))

    def _record(self, node: int, request: RoundRequest) -> bytes:
        session = self._sessions[node]
        if request.kind == SESSION:
            length = self._length
            return session.open_session(request, length, self._policy)
        if request.kind == CONFIRM:
            return session.confirm(request)
        if request.kind == UNMASK:
            return session.unmask(request)
        session.check(request)
        change = None if request.kind == EVALUATE else np.zeros_like(to_vector(request.arrays))
        return session.report(request, change, self._metrics(request))

    def _metrics(self, request: RoundRequest) -> dict[str, int | float]:
        return {"num-examples": self._examples} if request.kind == TRAIN else {}

    _length = 0

    def told_length(self, length: int) -> None:
        """How many weights travel: a session begins before any have."""
        self._length = length


class RehearsalGrid:
    """The network of a rehearsal: a site behind a socket, and stand-ins; all are always there.

    ``told`` collects what went to the site and came back: (request, reply).
    """

    def __init__(self, socket: Path, stand_ins: StandIns, *, deadline: float) -> None:
        self._socket, self._stand_ins, self._deadline = socket, stand_ins, deadline
        self._answers: dict[str, GridReply] = {}
        self._sent = 0
        self.told: list[tuple[RoundRequest, SiteReply]] = []

    def online_nodes(self) -> dict[int, str]:
        return dict.fromkeys((SITE_NODE, *self._stand_ins.names), "here")

    def push(self, requests: Mapping[int, RoundRequest], *, lifetime: float) -> dict[int, str]:
        ids = {}
        for node, request in requests.items():
            self._sent += 1
            ids[node] = f"message-{self._sent}"
            if node == SITE_NODE:
                reply = ask_site(self._socket, request, deadline=self._deadline)
                self.told.append((request, reply))
            else:
                reply = self._stand_ins.answer(node, request)
            self._answers[ids[node]] = GridReply(message_id=ids[node], source=node, reply=reply)
        return ids

    def pull(self, message_ids: Sequence[str]) -> list[GridReply]:
        return [self._answers.pop(key) for key in message_ids if key in self._answers]


def ask_site(socket: Path, request: RoundRequest, *, deadline: float) -> SiteReply:
    """The worker's reply to a frame, as the relay would hear it; ``deadline`` on the monotonic clock."""
    fields = {"config": request.to_mapping(), BUNDLE_KEY: BUNDLE}
    frame = Frame(request.kind, fields, request.arrays, request.aggregation_record)
    answer = ask(socket, frame, timeout=max(1.0, deadline - time.monotonic()))
    return SiteReply.from_mapping(answer.fields, dict(answer.arrays), aggregation_record=answer.octets)


def write_run_folder(config: RunConfig, dummy: DummySite, stand_ins: StandIns) -> int:
    """Initial weights and ``sites.json``; the number of weights that travel."""
    from safetensors.numpy import load_file

    from ..study import INITIAL_WEIGHTS, SITES, write_initial_weights

    folder = Path(config.run_directory)
    folder.mkdir(mode=0o700)
    write_initial_weights(config, folder / INITIAL_WEIGHTS)
    sites: dict[str, Any] = {str(node): name for node, name in stand_ins.names.items()}
    sites[str(SITE_NODE)] = {
        "name": dummy.facts.config.site_name,
        "num-examples": dummy.facts.num_images,
        "identity-key": dummy.identity.public_line,
    }
    atomic_write_text(folder / SITES, json.dumps(sites))
    return sum(array.size for array in load_file(folder / INITIAL_WEIGHTS).values())
