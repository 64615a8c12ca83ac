"""Rounds of echo with our own push and pull loop; writes what came back as JSON lines."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()
POLL_SECONDS = 0.05


@app.main()
def main(grid: Grid, context: Context) -> None:
    settings = context.run_config
    if settings["fail"]:
        raise RuntimeError("asked to fail")
    deadline = time.monotonic() + 60
    while len(nodes := sorted(grid.get_node_ids())) < settings["num-nodes"]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {len(nodes)} nodes came")
        time.sleep(POLL_SECONDS)
    values = np.zeros(settings["num-values"], dtype=np.float32)
    with Path(settings["report"]).open("a", buffering=1) as report:
        for server_round in range(1, settings["num-server-rounds"] + 1):
            started = time.monotonic()
            replies = exchange(grid, nodes, values, server_round + settings["first-round"] - 1)
            answers = [reply["values"] for reply in replies if "values" in reply]
            values = np.mean(answers, axis=0) if answers else values
            line = {
                "round": server_round,
                "seconds": time.monotonic() - started,
                "value": float(values[0]),
                "replies": [{k: v for k, v in reply.items() if k != "values"} for reply in replies],
            }
            report.write(json.dumps(line) + "\n")


def exchange(grid: Grid, nodes: list[int], values: np.ndarray, server_round: int) -> list[dict]:
    content = RecordDict({"arrays": ArrayRecord([values]), "config": ConfigRecord({"round": server_round})})
    waiting = set(grid.push_messages([Message(content, node, "train") for node in nodes]))
    replies = []
    while waiting:
        for message in grid.pull_messages(waiting):
            waiting.discard(message.metadata.reply_to_message_id)
            replies.append(read(message))
        time.sleep(POLL_SECONDS)
    return replies


def read(message: Message) -> dict:
    if message.has_error():
        return {"node": message.metadata.src_node_id, "error": message.error.reason}
    return {
        "node": message.metadata.src_node_id,
        "values": message.content["arrays"].to_numpy_ndarrays()[0],
        "process": message.content["metrics"]["process"],
        "site": dict(message.content["site"]),
    }
