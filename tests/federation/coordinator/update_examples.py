"""Updates of invented sites, and what our rules and Flower's make of them."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata

from federation.config import RunConfig
from federation.coordinator.strategies import build_aggregator
from federation.coordinator.validation import Update


def weights(seed):
    rng = np.random.default_rng(seed)
    shapes = {"conv.weight": (3, 2, 3, 3), "bias": (5,), "scale": ()}
    return {name: np.asarray(rng.standard_normal(shape), dtype=np.float32) for name, shape in shapes.items()}


def updates(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Update(
            node_id=n,
            site_name=str(n),
            arrays=weights([seed, n]),
            num_examples=int(rng.integers(1, 500)),
            metrics={},
        )
        for n in range(1, count + 1)
    ]


def ours(strategy, current, given_updates, server_round=1, **settings_):
    config = RunConfig(strategy=strategy, **settings_)
    return build_aggregator(config).aggregate(server_round, current, given_updates)


def flowers(strategy, given_updates, server_round=1):
    """What Flower's strategy makes of the same updates."""
    replies = []
    for update in given_updates:
        arrays = ArrayRecord({name: Array(array) for name, array in update.arrays.items()})
        content = RecordDict(
            {"arrays": arrays, "metrics": MetricRecord({"num-examples": update.num_examples})}
        )
        metadata = Metadata(1, "m", update.node_id, 0, "r", "", 0.0, 1.0, "train")
        replies.append(make_message(metadata, content))
    record, _ = strategy.aggregate_train(server_round, replies)
    return {name: array.numpy() for name, array in record.items()}
