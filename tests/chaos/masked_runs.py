"""What must hold of a run with secure aggregation, from its files and from what its sites trained.

Every checkpoint is the one before moved by the mean of the clear updates of exactly those sites that its
``sum-opened`` event names, n_i / Σ n of each, within rounding: a wrong sum shows in its first round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Steps of 8 / 4.3e8, weighted by max-examples / Σ n (at most 20): 4e-7; float32 of weights below 4: 2.4e-7.
TOLERANCE = 1e-6
Clear = Callable[[str, int], tuple[NDArray[np.float32], int]]
"""(site, round) -> its update (d,) in the clear, and its number of images."""


def vector_of(path: Path) -> NDArray[np.float32]:
    """(d,) the weights of a checkpoint, or of the initial weights."""
    from federation.coordinator.checkpoints import read_tensors
    from federation.hidden_sum import to_vector

    tensors, _ = read_tensors(path)
    return to_vector({name: array for name, array in tensors.items() if not name.startswith("state/")})


def wrong_sums(run: Path, clear: Clear) -> list[str]:
    """In words: rounds whose weights, or whose number of images, are not those of their sites."""
    from federation.coordinator.events import read_events

    events = read_events(run / "events.jsonl")
    members = {
        event["round"]: event["sites"]
        for event in events
        if event["event"] == "sum-opened" and event["kind"] == "train"
    }
    faults = []
    before = vector_of(run / "initial.safetensors")
    for path in sorted((run / "checkpoints").glob("round-*.safetensors")):
        server_round = int(path.stem.removeprefix("round-"))
        after = vector_of(path)
        wanted = before + mean_of(members.get(server_round, ()), server_round, clear)
        if not np.allclose(after, wanted, rtol=0.0, atol=TOLERANCE):
            faults.append(f"round {server_round} is off by {float(np.abs(after - wanted).max()):.3g}")
        before = after
    for event in events:
        if event["event"] == "round-finished":
            total = sum(clear(site, event["round"])[1] for site in event["sites"])
            if event["metrics"]["num-examples"] != total:
                faults.append(
                    f"round {event['round']} counts {event['metrics']['num-examples']}, not {total}"
                )
    return faults


def mean_of(sites: Iterable[str], server_round: int, clear: Clear) -> NDArray[np.float64]:
    """(d,) the clear mean of these sites, weighted by their images; NaN of none."""
    updates = [clear(site, server_round) for site in sites]
    total = sum(number for _, number in updates)
    if not total:
        return np.float64("nan") * np.ones(1)
    return np.asarray(sum(number * change.astype(np.float64) for change, number in updates) / total)


def revealed(folder: Path, secrets: Mapping[str, bytes]) -> list[str]:
    """In words: whose update lies in the clear in which file."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        octets = path.read_bytes()
        found += [
            f"the update of {whose} is in {path.name}"
            for whose, secret in secrets.items()
            if secret in octets
        ]
    return found


def sites_of_last_sum(run: Path) -> list[str]:
    from federation.coordinator.events import read_events

    opened = [event for event in read_events(run / "events.jsonl") if event["event"] == "sum-opened"]
    return list(opened[-1]["sites"])


class Answers:
    """Which sites gave shares, for which survivors: of one masked round there must be one sum only."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, int], list[tuple[int, bytes]]] = {}

    def note(self, node: int, record: bytes) -> None:
        """An answer left a site."""
        from federation.secure_aggregation import UnmaskAnswer

        answer = UnmaskAnswer.from_bytes(record)
        key = (answer.session_id.hex(), answer.server_round)
        self._given.setdefault(key, []).append((node, answer.survivors))

    @property
    def number(self) -> int:
        """Answers given."""
        return sum(map(len, self._given.values()))

    @property
    def faults(self) -> list[str]:
        """In words: sites that answered twice, and rounds with shares for different sets."""
        faults = []
        for (_, number), given in self._given.items():
            nodes, sets = [node for node, _ in given], {survivors for _, survivors in given}
            if len(nodes) != len(set(nodes)):
                faults.append(f"a site answered masked round {number} twice")
            if len(sets) > 1:
                faults.append(f"shares of masked round {number} are for {len(sets)} sets of survivors")
        return faults
