"""A ClientApp as in Flower's tutorials: torch is imported for every message, in a new process."""

from __future__ import annotations

from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from plain_app.model import build, train

app = ClientApp()


@app.train()
def train_on_message(message: Message, context: Context) -> Message:
    model = build()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    num_examples = train(model, Path(str(context.node_config["data"])))
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": num_examples}),
    }
    return Message(RecordDict(content), reply_to=message)
