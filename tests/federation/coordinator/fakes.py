"""A network and a clock that live in one process, and hospitals that behave as a test says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from federation.config import RunConfig
from federation.coordinator.grid import GridReply
from federation.messages import TRAIN, Arrays, Refusal, RoundRequest, SiteReply

NAMES = {11: "Anna", 12: "Bern", 13: "Cork"}


class FakeClock:
    """Time passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0.0
        self.now += seconds


Behaviour = Callable[[int, RoundRequest], Any]


@dataclass
class FakeGrid:
    """Nodes that answer each request after ``delay`` seconds with what ``behaviour`` makes of it.

    ``behaviour(node, request)`` returns a SiteReply, an error text, None for silence, or
    ``(delay, one of these)``. ``script`` is called with the grid at every look: the place to
    take nodes away, bring them back, or slip in replies of one's own.
    """

    clock: FakeClock
    behaviour: Behaviour = lambda node, request: honest(node, request)
    online: dict[int, str] = field(default_factory=lambda: dict.fromkeys(NAMES, "first"))
    script: Callable[[FakeGrid], None] = lambda grid: None
    sent: list[tuple[str, int, RoundRequest]] = field(default_factory=list)
    extra: list[GridReply] = field(default_factory=list)
    reverse: bool = False

    def __post_init__(self) -> None:
        self._ready: dict[str, tuple[float, GridReply]] = {}

    def online_nodes(self) -> dict[int, str]:
        self.script(self)
        return dict(self.online)

    def push(self, requests: Mapping[int, RoundRequest], *, lifetime: float) -> dict[int, str]:
        ids = {}
        for node, request in requests.items():
            message_id = f"message-{len(self.sent)}"
            self.sent.append((message_id, node, request))
            answer = self.behaviour(node, request)
            delay, answer = answer if isinstance(answer, tuple) else (0.01, answer)
            if isinstance(answer, str):
                reply = GridReply(message_id=message_id, error=answer)
                self._ready[message_id] = (self.clock.now + delay, reply)
            elif answer is not None:
                reply = GridReply(message_id=message_id, source=node, reply=answer)
                self._ready[message_id] = (self.clock.now + delay, reply)
            ids[node] = message_id
        return ids

    def pull(self, message_ids: Sequence[str]) -> list[GridReply]:
        self.script(self)
        arrived = [key for key in message_ids if key in self._ready and self._ready[key][0] <= self.clock.now]
        replies = [self._ready.pop(key)[1] for key in arrived] + self.extra
        self.extra = []
        return replies[::-1] if self.reverse else replies

    def asked(self, node: int) -> list[int]:
        """The training rounds a node was asked for, in order."""
        return [request.server_round for _, to, request in self.sent if to == node and request.kind == TRAIN]


def honest(node: int, request: RoundRequest) -> SiteReply:
    """A deterministic update: a pull towards the node's own target, different every round."""
    rng = np.random.default_rng([node, request.server_round])
    arrays = {
        name: np.asarray(0.7 * array + 0.3 * rng.standard_normal(array.shape), dtype=np.float32)
        for name, array in request.arrays.items()
    }
    return reply_with(arrays if request.kind == TRAIN else {}, node, request)


def reply_with(arrays: Arrays, node: int, request: RoundRequest, **metrics: Any) -> SiteReply:
    """A well-formed reply with these weights; ``metrics`` override the defaults."""
    level = float(request.arrays["w"].mean()) if request.evaluate else 0.0
    measured: dict[str, Any] = {
        "evaluate-num-examples": 10 * (node - 10),
        "evaluate-accuracy-plain": min(1.0, abs(level)),
        "evaluate-loss-plain": 0.5,
    }
    trained: dict[str, Any] = {
        "num-examples": 100 * (node - 10),
        "train-loss": 0.25 * (node - 10),
        "train-seconds": 0.005,
        "worker-seconds": 0.008,
    }
    values = (measured if request.evaluate else {}) | (trained if request.kind == TRAIN else {})
    values |= {name.replace("_", "-"): value for name, value in metrics.items()}
    return SiteReply(site_name=NAMES.get(node, "somebody"), metrics=values, arrays=arrays)


def refuse(reason: str = "the budget is used up", kind: str = "budget") -> SiteReply:
    return SiteReply(site_name="a site", refusal=Refusal(reason=reason, hint="ask the hospital", kind=kind))


def initial_weights() -> Arrays:
    rng = np.random.default_rng(1)
    return {
        "w": rng.standard_normal((4, 3)).astype(np.float32),
        "bias": rng.standard_normal(3).astype(np.float32),
        "scale": np.array(1.5, dtype=np.float32),
    }


def prepare(folder: Path, sites: Mapping[int, Any] = NAMES, **settings: Any) -> RunConfig:
    """A run directory with weights and registered sites, and the settings of a quick run."""
    folder.mkdir(exist_ok=True)
    save_file(initial_weights(), folder / "initial.safetensors")
    if sites:
        (folder / "sites.json").write_text(json.dumps({str(key): value for key, value in sites.items()}))
    quick = {"round_deadline": 60.0, "start_deadline": 30.0, "settle_time": 2.0, "run_directory": str(folder)}
    return RunConfig(**(quick | settings))
