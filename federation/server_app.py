"""The Flower ServerApp: a thin shell around ``federation/coordinator``.

It reads the run's settings from Flower's run configuration, fits Flower's grid to
:class:`~federation.coordinator.grid.RoundGrid`, and lets ``rounds.run`` do the work. When that
raises, so does this, and Flower marks the run as failed. No torch in this process: weights are
numpy arrays, the initial ones are read from the run directory.

Replies are taken apart without trust: the bytes of every array are measured before they are
read, and read without ``numpy.load`` (see ``array_from_npy``). A reply that cannot be taken
apart counts as that site's failure, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from instahide.errors import InstaHideError, InvalidInputError

from .config import RunConfig
from .coordinator import rounds
from .coordinator.grid import GridReply
from .messages import MAX_ARRAYS, Arrays, RoundRequest, SiteReply, array_from_npy

NPY_HEADER_BYTES = 16_384  # more than any header numpy writes for a float32 array

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Carry out the run this process was started for; raise if it fails."""
    rounds.run(RunConfig.from_run_config(context.run_config), FlowerGrid(grid))


class FlowerGrid:
    """Flower's grid as the coordinator's :class:`RoundGrid`.

    Flower's own ``send_and_receive`` sleeps three seconds between two looks, and its node
    sampling waits for ever; so this only pushes, pulls and lists.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._largest_reply = 0  # bytes; set by what is sent

    def online_nodes(self) -> dict[int, str]:
        """Node id → time of its last activation; Flower lists only nodes that are online."""
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}

    def push(self, requests: Mapping[int, RoundRequest], *, lifetime: float) -> dict[int, str]:
        """Send the requests; the weights they share travel to the SuperLink once."""
        contents = {id(request): to_content(request) for request in requests.values()}
        nodes = list(requests)
        messages = [
            Message(
                content=contents[id(requests[node])],
                dst_node_id=node,
                message_type=requests[node].kind,
                ttl=lifetime,
                group_id=str(requests[node].server_round),
            )
            for node in nodes
        ]
        for request in requests.values():
            sent = sum(array.nbytes + NPY_HEADER_BYTES for array in request.arrays.values())
            self._largest_reply = max(self._largest_reply, sent)
        message_ids = list(self._grid.push_messages(messages))
        # Flower returns no ids at all for a payload it finds too large, "" for a refused message.
        return {node: str(sent) for node, sent in zip(nodes, message_ids, strict=False) if sent}

    def pull(self, message_ids: Sequence[str]) -> list[GridReply]:
        """The replies that are in, each as a site's reply or an error text."""
        return [self._to_reply(message) for message in self._grid.pull_messages(message_ids)]

    def _to_reply(self, message: Message) -> GridReply:
        to = {"message_id": message.metadata.reply_to_message_id, "source": message.metadata.src_node_id}
        if message.has_error():
            error = message.error
            return GridReply(**to, error=f"Flower error {error.code}: {error.reason or 'no reason given'}")
        try:
            return GridReply(**to, reply=to_site_reply(message.content, largest=self._largest_reply))
        except InstaHideError as problem:
            return GridReply(**to, error=f"unusable reply: {problem.message}")


def to_content(request: RoundRequest) -> RecordDict:
    """The records of a request: its weights and its settings."""
    # Contiguous copies keep the bytes, and so Flower's content addresses, the same everywhere.
    arrays = {name: Array(np.asarray(array, order="C")) for name, array in request.arrays.items()}
    return RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord(request.to_mapping())})


def to_site_reply(content: RecordDict, *, largest: int) -> SiteReply:
    """The reply in Flower's records, or InvalidInputError; ``largest`` bounds its arrays in bytes."""
    records: dict[str, dict[str, Any]] = {}
    arrays: Arrays = {}
    for name, record in content.items():
        if name == "arrays" and isinstance(record, ArrayRecord):
            arrays = _to_arrays(record, largest)
        elif isinstance(record, ConfigRecord | MetricRecord):
            records[name] = dict(record)
        else:
            raise InvalidInputError(
                f"unknown record {name!r:.100} in a reply", hint="see federation/PROTOCOL.md"
            )
    return SiteReply.from_mapping(records, arrays)


def _to_arrays(record: ArrayRecord, largest: int) -> Arrays:
    size = sum(len(array.data) for array in record.values())
    if size > largest or len(record) > MAX_ARRAYS:
        raise InvalidInputError(
            f"{len(record)} arrays of {size} bytes, where at most {largest} bytes were due"
        )
    return {name: array_from_npy(array.data) for name, array in record.items()}
