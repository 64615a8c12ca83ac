"""What a hospital reaches alone: the yardstick beside which a federation must be seen.

::

    python -m federation.site.local_baseline --config worker.toml --run run.toml

The same model from the same initial weights, trained by the same code for the same number of
steps (rounds times local epochs) on this site's images only, then measured on its test images
in the three inference modes. Nothing leaves the process, so nothing is charged to the ledger.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from instahide.encoder import Encoder
from instahide.epochs import EncodedEpochs
from instahide.errors import InstaHideError
from instahide.models import build_model
from instahide.training import train

from ..config import RunConfig
from ..messages import Arrays, RoundRequest
from .dataset import SiteData, load_site_data
from .encodings import build_encoder, law_of
from .local_training import learning_rates, measure, training_config
from .settings import read_toml
from .weights import read_weights
from .worker_config import load_worker_config


@dataclass(frozen=True)
class LocalResult:
    """Figures under the protocol's metric names, and the weights reached."""

    metrics: dict[str, int | float]
    arrays: Arrays


def train_local(
    data: SiteData,
    request: RoundRequest,
    *,
    device: str = "auto",
    threads: int = 2,
    max_exposures: int | None = 1,
) -> LocalResult:
    """Train on one site's images only, for as many steps as the whole run of ``request``.

    Args:
        data: the site's images.
        request: any round of the run; its settings count, not its weights.
        device: as for ``TrainingConfig``.
        threads: processor threads.
        max_exposures: fresh encodings of each image, as in the federation beside it; ``None``: no limit.

    Raises:
        RefusedError: the run names other classes or another image shape.
    """
    data.check_fits(request)
    torch.set_num_threads(threads)
    channels, height, width = request.image_shape
    model = build_model(
        request.model,
        image_shape=(channels, height, width),
        num_classes=len(request.class_names),
        absolute_input=request.absolute_input,
        initialization_seed=request.initialization_seed,
    )
    encoder = None if data.training.is_table else build_encoder(law_of(request), data)
    source = _source(request, data, encoder, max_exposures)
    config = training_config(request, device=device, threads=threads)
    seconds, loss = 0.0, 0.0
    for server_round in range(1, request.num_server_rounds + 1):
        rates = learning_rates(replace(request, server_round=server_round), len(data.training))
        result = train(model, source, config, learning_rates=rates)
        seconds, loss = seconds + result.seconds, result.history[-1].loss
    metrics: dict[str, int | float] = {"num-examples": len(data.training)}
    metrics |= {"train-loss": loss, "train-seconds": seconds}
    metrics |= measure(model, data.test, encoder, request.num_views)
    return LocalResult(metrics, read_weights(model))


def _source(request: RoundRequest, data: SiteData, encoder: Encoder | None, max_exposures: int | None) -> Any:
    if request.encoding == "none":
        return data.training
    assert encoder is not None  # check_fits refuses to encode a table
    return EncodedEpochs(encoder, data.training, ledger=None, max_fresh=max_exposures).next_epoch


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures as one JSON line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m federation.site.local_baseline", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="worker.toml of the site")
    parser.add_argument("--run", type=Path, required=True, help="the run's settings (TOML)")
    parser.add_argument("--max-exposures", type=int, default=1, help="fresh encodings of each image")
    options = parser.parse_args(arguments)
    try:
        config = load_worker_config(options.config)
        data = load_site_data(config)
        channels, height, width = data.training.image_shape
        own = {"class-names": list(data.class_names), "image-shape": [channels, height, width]}
        run = RunConfig.from_mapping(own | read_toml(options.run, "run configuration"))
        result = train_local(
            data,
            RoundRequest.for_round(run, 1, {}),
            device=config.device,
            threads=config.threads,
            max_exposures=options.max_exposures,
        )
    except InstaHideError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    print(json.dumps({"event": "local-baseline", "site": config.site_name, "metrics": result.metrics}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
