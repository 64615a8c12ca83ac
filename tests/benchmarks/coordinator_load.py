"""What one site's reply costs the coordinator, by the size of the model: processor seconds and bytes.

    python -m tests.benchmarks.coordinator_load [--model mlp --model resnet18] [--repeats 5]

unpack      the reply's safetensors bytes, without trust (``packing.unpack_arrays``)
validate    names, shapes, finite, bounds (``coordinator.validation``)
aggregate   its share of the weighted mean over ``--updates`` updates (FedAvg)
masked      with secure aggregation: five sites' reports, their sum at the server and its opening
checkpoint  once a round: weights to the disk

One thread; medians. Flower's own handling of the bytes is not in here: ``deployment_growth`` has rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from federation.config import RunConfig
from federation.coordinator.checkpoints import Checkpoint, CheckpointStore
from federation.coordinator.sites import SiteBook
from federation.coordinator.strategies import build_aggregator
from federation.coordinator.validation import UpdateValidator
from federation.messages import TRAIN, SiteReply
from federation.packing import pack_arrays, unpack_arrays
from federation.site.weights import read_weights
from instahide.models import build_model

from .secure_aggregation import Run

SHAPES = {"mlp": (1, 8, 8), "small-cnn": (1, 8, 8), "resnet18": (3, 32, 32), "resnet32": (3, 32, 32)}
METRICS: dict[str, int | float] = {"num-examples": 40, "train-loss": 1.0}


def cost(work: Callable[[], Any], repeats: int) -> float:
    """Median processor seconds."""
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def measure(model: str, repeats: int, num_updates: int) -> None:
    weights = read_weights(build_model(model, image_shape=SHAPES[model], num_classes=10))
    length = sum(array.size for array in weights.values())
    moved = {name: np.asarray(array + 1e-3, np.float32) for name, array in weights.items()}
    config = RunConfig(class_names=tuple("abcdefghij"), image_shape=SHAPES[model], model=model)
    packed = pack_arrays(moved)
    validator = UpdateValidator(config, SiteBook())
    reply = SiteReply(site_name="a", metrics=METRICS, arrays=unpack_arrays(packed))
    update = validator.check(1, reply, weights, TRAIN)
    updates = [replace(update, node_id=number) for number in range(1, num_updates + 1)]
    aggregator = build_aggregator(config)
    seconds = {
        "unpack": cost(lambda: unpack_arrays(packed), repeats),
        "validate": cost(lambda: validator.check(1, reply, weights, TRAIN), repeats),
        "aggregate": cost(lambda: aggregator.aggregate(1, weights, updates), repeats) / num_updates,
    }
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder), config)
        point = Checkpoint(server_round=1, weights=weights, state={}, sizes={})
        seconds["checkpoint"] = cost(lambda: store.save(point), repeats)
    run = Run(5, length)
    run.join()
    run.play()
    began = time.process_time()
    _, costs, _, _ = run.play()
    print(f"{model}: {length:,} weights, {len(packed):,} bytes packed; secure round {costs}")
    print("   " + "  ".join(f"{name} {1000 * value:.2f} ms" for name, value in seconds.items()), flush=True)
    print(f"   five masked sites and their server: {time.process_time() - began:.3f} s of processor time")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=sorted(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--updates", type=int, default=8)
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    for model in options.model or ["mlp", "resnet18"]:
        measure(model, options.repeats, options.updates)


if __name__ == "__main__":
    main()
