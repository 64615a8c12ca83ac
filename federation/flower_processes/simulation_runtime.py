"""Simulated hospitals in Flower's simulation runtime: its grid and messages, and Ray's actors as players.

Needs the extra ``simulation`` (Ray). Flower gives a message to whichever actor is free, so a hospital has no
process of its own: its folder on the disk, which every actor of this machine can open, is all its memory.
Session keys of secure aggregation are kept in no file, so such runs are refused here. What this adds to
the ``local`` backend is that every request and reply becomes Flower's records and back, as in a real
run, and passes Flower's queues; there is still no network. Flower 1.41 calls the entry used here
deprecated, in favour of the command ``flwr run``.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from instahide.errors import FederationError

from ..flower_records import ARRAYS, weights_in, weights_record
from ..messages import EVALUATE, TRAIN, SiteReply
from ..packing import pack_arrays, unpack_arrays
from ..server_app import FlowerGrid
from ..simulation.grid import Order
from ..simulation.population import Population
from ..simulation.sites import SimulatedSites, quiet_sites

WHO: Final = "query.who"
_START_SECONDS: Final = 300.0
_LIFETIME: Final = 3600.0
_LOOK_SECONDS: Final = 0.02
_SITES: dict[str, SimulatedSites] = {}  # of an actor's process, by folder


class FlowerPlayers:
    """Players behind Flower's grid; ``node_of`` is number → Flower's node id."""

    def __init__(self, grid: Grid, node_of: dict[int, int]) -> None:
        self._grid, self._node_of = FlowerGrid(grid), node_of

    def answer(self, orders: Sequence[Order]) -> Iterator[tuple[int, SiteReply]]:
        """See :class:`federation.simulation.grid.Players`."""
        numbers = {self._node_of[order.number]: order.number for order in orders}
        ids = self._grid.push(
            {self._node_of[order.number]: order.request for order in orders}, lifetime=_LIFETIME
        )
        if len(ids) < len(orders):
            raise FederationError("Flower did not take every message", hint="use --backend local")
        waiting = {message: numbers[node] for node, message in ids.items()}
        while waiting:
            for arrived in self._grid.pull(list(waiting)):
                if arrived.reply is None:
                    raise FederationError(f"an actor failed: {arrived.error}", hint="use --backend local")
                yield waiting.pop(arrived.message_id), arrived.reply
            time.sleep(_LOOK_SECONDS if waiting else 0.0)


def with_flower_players(
    population_folder: Path,
    folder: Path,
    numbers: Sequence[int],
    *,
    num_workers: int,
    policy: str,
    use: Callable[[Any, dict[int, str]], dict[str, Any]],
) -> dict[str, Any]:
    """Start Flower's simulation, call ``use(players, identity lines)`` in its ServerApp; what that returned.

    Raises:
        FederationError: Flower's simulation ended without a result.
    """
    os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_USAGE_STATS_ENABLED="0")
    from flwr.simulation import run_simulation

    folder.mkdir(parents=True, exist_ok=True)
    sites = SimulatedSites(folder, _names(numbers), lambda number: _no_data(), policy=policy)
    lines = {number: sites.identity_line(number) for number in numbers}  # the folders, before any actor
    outcome: dict[str, Any] = {}
    server = ServerApp()

    @server.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        try:
            outcome["result"] = use(FlowerPlayers(grid, _node_of(grid, len(numbers))), lines)
        except BaseException as error:
            outcome["error"] = error

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's and Flower's, about themselves
        run_simulation(
            server_app=server,
            client_app=_client(str(population_folder), str(folder), policy),
            num_supernodes=len(numbers),
            backend_config={
                "init_args": {"num_cpus": num_workers, "include_dashboard": False, "log_to_driver": False},
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            },
        )
    if "error" in outcome:
        raise outcome["error"]
    if "result" not in outcome:
        raise FederationError("Flower's simulation ended without a result", hint="use --backend local")
    found: dict[str, Any] = outcome["result"]
    return found


def _client(population_folder: str, folder: str, policy: str) -> ClientApp:
    """A ClientApp that plays whichever hospital it is asked for."""
    app = ClientApp()

    def answer(kind: str) -> Callable[[Message, Context], Message]:
        return lambda message, context: _answer(message, context, kind, population_folder, folder, policy)

    app.train()(answer(TRAIN))
    app.evaluate()(answer(EVALUATE))
    app.query("who")(_who)
    return app


def _who(message: Message, context: Context) -> Message:
    return Message(RecordDict({"who": ConfigRecord({"number": _number(context)})}), reply_to=message)


def _answer(
    message: Message, context: Context, kind: str, population_folder: str, folder: str, policy: str
) -> Message:
    if folder not in _SITES:
        population = Population.load(Path(population_folder))
        _SITES.clear()
        # Another actor may have had this hospital's last round: nothing of it may be kept in memory here.
        _SITES[folder] = SimulatedSites(
            Path(folder), population.names, population.data, policy=policy, most_open=0
        )
    records = message.content
    arrays = unpack_arrays(weights_in(records[ARRAYS])) if ARRAYS in records else {}
    with quiet_sites():
        reply = _SITES[folder].answer(_number(context), kind, dict(records["config"]), arrays)
    content = RecordDict()
    for name, record in reply.to_mapping().items():
        content[name] = MetricRecord(record) if name == "metrics" else ConfigRecord(record)
    if reply.arrays:
        content[ARRAYS] = weights_record(pack_arrays(reply.arrays))
    return Message(content, reply_to=message)


def _number(context: Context) -> int:
    return int(context.node_config["partition-id"]) + 1


def _node_of(grid: Grid, count: int) -> dict[int, int]:
    """Hospital's number → Flower's node id, once all are there."""
    deadline = time.monotonic() + _START_SECONDS
    while len(nodes := list(grid.get_node_ids())) < count:
        if time.monotonic() > deadline:
            raise FederationError("Flower's simulated nodes did not come up", hint="use --backend local")
        time.sleep(_LOOK_SECONDS)
    asked = [Message(RecordDict(), dst_node_id=node, message_type=WHO) for node in nodes]
    waiting, found = set(grid.push_messages(asked)), dict[int, int]()
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            if reply.has_error():
                raise FederationError(f"an actor failed: {reply.error.reason}", hint="use --backend local")
            found[int(reply.content["who"]["number"])] = reply.metadata.src_node_id
        time.sleep(_LOOK_SECONDS)
    return found


def _names(numbers: Sequence[int]) -> dict[int, str]:
    return {number: str(number) for number in numbers}


def _no_data() -> Any:
    raise AssertionError("the images are opened by Flower's actors")
