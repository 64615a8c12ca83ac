"""The Flower ServerApp: a thin shell around ``federation/coordinator``.

It reads the run's settings from Flower's run configuration, fits Flower's grid to
:class:`~federation.coordinator.grid.RoundGrid`, and lets ``rounds.run`` do the work. When that
raises, so does this, and Flower marks the run as failed. No torch in this process: weights are
numpy arrays, the initial ones are read from the run directory.

Replies are taken apart without trust: the bytes of the weights are measured before they are
read, and hold no code (``packing.py``). A reply that cannot be taken apart counts as that site's
failure, with the reason.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import http_grid

from instahide.errors import InstaHideError, InvalidInputError

from .config import RunConfig
from .coordinator import rounds
from .coordinator.grid import GridReply
from .flower_records import AGGREGATION, ARRAYS, weights_in, weights_record
from .messages import Arrays, RoundRequest, SiteReply
from .packing import pack_arrays, unpack_arrays

SPARE_BYTES = 65_536  # a reply's header may be longer than the request's by this much
WIDEST_RING = 2  # 64 bits for a float32
RECORD_BYTES = 4 * 1024 * 1024  # what a masked report of 255 sites holds beside its vector

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Carry out the run this process was started for; raise if it fails."""
    look_again_soon()
    rounds.run(RunConfig.from_run_config(context.run_config), FlowerGrid(grid))


def look_again_soon(first_wait: float = 0.1) -> None:
    """Shorten the grid's wait for a reply's objects that are still on their way (Flower: a second)."""
    pull = http_grid.pull_objects
    if "initial_backoff" in inspect.signature(pull).parameters:
        http_grid.pull_objects = functools.partial(pull, initial_backoff=first_wait)


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
        packed = {id(request): pack_arrays(request.arrays) for request in requests.values()}
        contents = {id(request): to_content(request, packed[id(request)]) for request in requests.values()}
        self._largest_reply = max([self._largest_reply, *(len(d) + SPARE_BYTES for d in packed.values())])
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


def to_content(request: RoundRequest, weights: bytes) -> RecordDict:
    """The records of a request: its packed weights and its settings."""
    content = RecordDict({ARRAYS: weights_record(weights), "config": ConfigRecord(request.to_mapping())})
    if request.aggregation_record:
        content[AGGREGATION] = weights_record(request.aggregation_record)
    return content


def to_site_reply(content: RecordDict, *, largest: int) -> SiteReply:
    """The reply in Flower's records, or InvalidInputError; ``largest`` bounds its arrays in bytes."""
    records: dict[str, dict[str, Any]] = {}
    arrays: Arrays = {}
    octets = b""
    for name, record in content.items():
        if name == ARRAYS:
            arrays = unpack_arrays(_bytes_in(record, largest))
        elif name == AGGREGATION:
            octets = _bytes_in(record, WIDEST_RING * largest + RECORD_BYTES)
        elif isinstance(record, ConfigRecord | MetricRecord):
            records[name] = dict(record)
        else:
            raise InvalidInputError(
                f"unknown record {name!r:.100} in a reply", hint="see federation/PROTOCOL.md"
            )
    return SiteReply.from_mapping(records, arrays, aggregation_record=octets)


def _bytes_in(record: object, largest: int) -> bytes:
    data = weights_in(record)
    if len(data) > largest:
        raise InvalidInputError(f"{len(data)} bytes in a record, where at most {largest} were due")
    return data
