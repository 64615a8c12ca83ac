"""The plain app's step in a process that lives on; all weights travel as one array."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from plain_app.model import build, train
from torch.nn.utils import parameters_to_vector, vector_to_parameters

app = ClientApp()
torch.set_num_threads(1)


@app.train()
def train_on_message(message: Message, context: Context) -> Message:
    model = build()
    (values,) = message.content["arrays"].to_numpy_ndarrays()
    vector_to_parameters(torch.from_numpy(values.copy()), model.parameters())
    train(model)
    trained: np.ndarray = parameters_to_vector(model.parameters()).detach().numpy()
    content = {"arrays": ArrayRecord([trained]), "metrics": MetricRecord({"num-examples": 32})}
    return Message(RecordDict(content), reply_to=message)
