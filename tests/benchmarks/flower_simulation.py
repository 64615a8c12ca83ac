"""What Flower's simulation runtime costs by itself: an echo of 20 KB by clients that do nothing else.

    python -m tests.benchmarks.flower_simulation 100      (needs the extra ``simulation``: Ray)

Wall seconds of three rounds to that many nodes, the first with Ray's start, and peak resident memory of this
process and all below it. Two actors.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

import numpy as np
import psutil
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

NUM_WEIGHTS, NUM_ROUNDS = 5000, 3
client, server = ClientApp(), ServerApp()
found: dict[str, Any] = {}


@client.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    return Message(content=RecordDict({"arrays": message.content["arrays"]}), reply_to=message)


@server.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    while len(nodes := list(grid.get_node_ids())) < found["nodes"]:
        time.sleep(0.1)
    content = RecordDict({"arrays": ArrayRecord([np.zeros(NUM_WEIGHTS, np.float32)])})
    for _ in range(NUM_ROUNDS):
        began = time.perf_counter()
        sent = [Message(content=content, dst_node_id=node, message_type="train") for node in nodes]
        waiting = set(grid.push_messages(sent))
        while waiting:
            for reply in grid.pull_messages(list(waiting)):
                assert not reply.has_error()
                waiting.discard(reply.metadata.reply_to_message_id)
            time.sleep(0.05)
        found["seconds"].append(round(time.perf_counter() - began, 2))


def _watch_memory(stop: threading.Event) -> None:
    me = psutil.Process()
    while not stop.wait(0.3):
        total = 0
        for process in (me, *me.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
        found["peak-mib"] = max(found["peak-mib"], total // 2**20)


if __name__ == "__main__":
    from flwr.simulation import run_simulation

    os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_USAGE_STATS_ENABLED="0")
    found.update({"nodes": int(sys.argv[1]), "seconds": [], "peak-mib": 0})
    stop = threading.Event()
    threading.Thread(target=_watch_memory, args=(stop,), daemon=True).start()
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=found["nodes"],
        backend_config={
            "init_args": {"num_cpus": 2, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    stop.set()
    print(json.dumps(found))
