"""A client that adds one to what it gets; in the bundle and, for our node, on the module path."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Reply with each array plus one, this process's id, and what the node told us."""
    if message.content["config"]["round"] == -1:
        raise ValueError("a secret path /data/patients")
    arrays = message.content["arrays"].to_numpy_ndarrays()
    told = {key: str(value) for key, value in context.node_config.items()}
    content = RecordDict(
        {
            "arrays": ArrayRecord([array + 1 for array in arrays]),
            "metrics": MetricRecord({"num-examples": 1, "process": os.getpid()}),
            "site": ConfigRecord({**told, "code": str(Path(__file__).resolve())}),
        }
    )
    return Message(content, reply_to=message)
