"""Round checkpoints of a coordinator, read as updates.

A coordinator of this toolkit keeps ``checkpoints/round-NNNN.safetensors`` with ``weights/NAME`` and its
settings as metadata, and ``initial.safetensors`` beside them. Under federated averaging the difference of
two consecutive ones is the mean of the sites' updates weighted by images: with one site its very update,
with m sites what secure aggregation would leave. So whoever can read the global models of a run sees this
much, the sites themselves included.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import InvalidInputError
from ...images import ImageSet
from ...training_config import TrainingConfig
from .capture import Arrays, described_network, read_safetensors, under
from .view import Defence, LocalTraining, UpdateView

CHECKPOINT_FORMAT = "instahide-fl round checkpoint 1"


def read_round_checkpoints(
    folder: Path, *, server_round: int | None = None, public_images: ImageSet | None = None
) -> UpdateView:
    """The update of one round, from a run directory of a coordinator.

    Args:
        folder: the run directory, or its ``checkpoints`` folder.
        server_round: the round to look at; by default the last one with a checkpoint on either side.

    Raises:
        InvalidInputError: no two consecutive checkpoints, a server rule that is no weighted mean, or sites
            whose number of images is not in the checkpoint.
    """
    inner = folder / "checkpoints"
    checkpoints = inner if inner.is_dir() else folder
    found = {
        int(match[1]): path
        for path in checkpoints.glob("round-*.safetensors")
        if (match := re.fullmatch(r"round-(\d{4,6})\.safetensors", path.name))
    }
    initial = checkpoints.parent / "initial.safetensors"
    if initial.exists():
        found[0] = initial
    last = server_round if server_round is not None else max((r for r in found if r - 1 in found), default=-1)
    if last not in found or last - 1 not in found:
        raise InvalidInputError(
            f"{folder} holds no checkpoints of round {last - 1 if last > 0 else 0} and the next one",
            hint="keep-checkpoints of the run must be 2 or more; give the run directory",
        )
    arrays, metadata = read_safetensors(found[last])
    if metadata.get("format") != CHECKPOINT_FORMAT:
        raise InvalidInputError(f"{found[last].name} is not a round checkpoint", hint="give a run directory")
    config, sizes = json.loads(metadata["config"]), json.loads(metadata["sizes"])
    before = _weights(read_safetensors(found[last - 1])[0])
    return _view_of_round(config, sizes, last, before, _weights(arrays), public_images)


def _view_of_round(
    config: dict[str, Any],
    sizes: dict[str, int],
    server_round: int,
    before: Arrays,
    after: Arrays,
    public_images: ImageSet | None,
) -> UpdateView:
    if config["strategy"] not in ("fedavg", "fedprox"):
        raise InvalidInputError(
            f"the run's strategy is {config['strategy']}, not a weighted mean",
            hint="only fedavg and fedprox let an update be read from two checkpoints",
        )
    by_site = [
        count for name, count in sizes.items() if name.endswith(":num-examples") and "evaluate" not in name
    ]
    if not by_site or len(set(by_site)) != 1:
        raise InvalidInputError(
            f"the checkpoint names {len(by_site)} sites with {sorted(set(by_site))} images",
            hint="one site, or several with equally many images, can be modelled",
        )
    described = {
        "name": config["model"],
        "image_shape": config["image-shape"],
        "num_classes": len(config["class-names"]),
        "absolute_input": config["absolute-input"],
    }
    network = described_network(described, before, Path("round checkpoint"))
    names = [name for name, _ in network.named_parameters()]
    plan = LocalTraining(
        num_images=sum(by_site),
        batch_size=config["batch-size"],
        epochs=config["local-epochs"],
        learning_rate=_learning_rate(config, server_round, by_site[0]),
        momentum=config["momentum"],
        weight_decay=config["weight-decay"],
        proximal_mu=config["proximal-mu"],
        max_gradient_norm=TrainingConfig().max_gradient_norm,
        optimizer=config["optimizer"],
    )
    encoded = config["encoding"] == "instahide" and config["encoding-mode"] != "mixup"
    return UpdateView(
        network,
        {name: torch.from_numpy(after[name].astype(np.float64) - before[name]) for name in names},
        "update",
        plan,
        tuple(config["image-shape"]),
        described["num_classes"],
        defence=Defence(num_sites=len(by_site)),
        sign_masked=encoded,
        public_images=public_images,
    )


def _learning_rate(config: dict[str, Any], server_round: int, num_images: int) -> float:
    """The rate at the first step of the round; the schedule runs over all rounds."""
    whole = TrainingConfig(
        epochs=config["local-epochs"] * config["num-server-rounds"],
        learning_rate=config["learning-rate"],
        lr_schedule=config["lr-schedule"],
        equivalent_to=config.get("equivalent-to", "step"),
    )
    steps = max(1, -(-num_images // config["batch-size"]))
    first = (server_round - 1) * config["local-epochs"] * steps
    return max(whole.learning_rate_at(first, steps_per_epoch=steps), 1e-12)


def _weights(arrays: Arrays) -> Arrays:
    """Weights of a checkpoint (``weights/NAME``) or of ``initial.safetensors`` (bare names)."""
    return under(arrays, "weights") or {
        name: a for name, a in arrays.items() if not name.startswith("state/")
    }
