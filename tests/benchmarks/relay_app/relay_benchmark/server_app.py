"""A mean over the nodes with our own push and pull loop; writes the time of each round's end."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()
POLL_SECONDS = 0.1
NUM_WEIGHTS = 39_500  # of the plain app's model


@app.main()
def main(grid: Grid, context: Context) -> None:
    settings = context.run_config
    while len(nodes := list(grid.get_node_ids())) < settings["num-nodes"]:
        time.sleep(POLL_SECONDS)
    values = np.full(NUM_WEIGHTS, 0.01, dtype=np.float32)
    with Path(settings["report"]).open("a", buffering=1) as report:
        report.write(f"{time.monotonic()}\n")
        for _ in range(settings["num-server-rounds"]):
            content = RecordDict({"arrays": ArrayRecord([values])})
            waiting = set(grid.push_messages([Message(content, node, "train") for node in nodes]))
            arrived = []
            while waiting:
                for reply in grid.pull_messages(waiting):
                    waiting.discard(reply.metadata.reply_to_message_id)
                    arrived.append(reply.content["arrays"].to_numpy_ndarrays()[0])
                time.sleep(POLL_SECONDS)
            values = np.mean(arrived, axis=0, dtype=np.float32)
            report.write(f"{time.monotonic()}\n")
