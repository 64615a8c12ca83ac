"""How many images a coordinator reads out of one update when it crafts the weights it sends.

    python -m tests.benchmarks.crafted_weights                              (digits, a minute)
    python -m tests.benchmarks.crafted_weights --data cifar10_5k.npz --max-images 3000 --repetitions 1

Network ``mlp`` (256 units see the image). Rows: N images of one site in one step, with honest weights, trap
units and bins; then with trap units after five local epochs in batches of 32 (momentum 0.9, weight decay,
clipping, as a site trains); a sum over five sites of N images each; encodings (k = 4, hardened); DP-SGD at
epsilon 8, delta 1e-5, 10 epochs in batches of 32. Up to 1,200 other images are the coordinator's stand-ins.

The last lines: the largest correlation of a unit's change with an image, averaged over images.

"exact": mean square error below 1e-4 on [-1, 1] against some image read; "close": below 0.01. Averages over
the repetitions, each on other images. "in theory" is ``alone_in_theory``.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from federation.demo.data import digits
from instahide.attacks.replica import make_replica
from instahide.attacks.update_inversion import (
    LocalTraining,
    UpdateView,
    build_network,
    observe,
    read_traps,
    securely_aggregated,
    set_traps,
)
from instahide.attacks.update_inversion.analytic import first_dense_layer
from instahide.attacks.update_inversion.trap_weights import alone_in_theory
from instahide.dp_training import train_with_dp
from instahide.encoder_config import EncoderConfig
from instahide.images import ImageSet
from instahide.mixing import to_unit_range
from instahide.readers import load_images
from instahide.training_config import TrainingConfig

DATA = Path(os.environ.get("INSTAHIDE_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))
UNITS, STAND_INS = 256, 1200
LOCAL: dict[str, Any] = {"momentum": 0.9, "weight_decay": 5e-4, "learning_rate": 0.05}
CLOSE, EXACT = 1e-2, 1e-4


@dataclass(frozen=True)
class World:
    """Images of hospitals, stand-ins of the coordinator, and the honest network."""

    private: ImageSet
    public: ImageSet
    model: nn.Module

    def site(self, count: int, seed: int) -> tuple[ImageSet, torch.Tensor, torch.Tensor]:
        """(set, images, labels) of ``count`` private images, others for each ``seed``."""
        chosen = np.random.default_rng(seed).permutation(len(self.private))[:count]
        drawn = self.private.subset(chosen)
        assert drawn.labels is not None
        targets = torch.eye(self.private.num_classes)[torch.from_numpy(drawn.labels)]
        return drawn, to_unit_range(drawn.images.copy()), targets

    def crafted(self, num_images: int, kind: str, stand_ins: torch.Tensor | None = None) -> nn.Module:
        seen = to_unit_range(self.public.images.copy()) if stand_ins is None else stand_ins
        return set_traps(self.model, seen, num_images=num_images, kind=kind)


def counted(view: UpdateView, truth: torch.Tensor) -> tuple[int, int, int]:
    """(exact, close, verified) images read out of ``view``."""
    found = read_traps(view)
    if not len(found.images):
        return 0, 0, 0
    best = torch.cdist(truth.flatten(1).double(), found.images.flatten(1)).square().amin(1)
    best /= truth[0].numel()
    return int((best < EXACT).sum()), int((best < CLOSE).sum()), int(found.verified.sum())


def one_step(world: World, count: int, seed: int, kind: str) -> tuple[int, int, int]:
    _, images, labels = world.site(count, seed)
    model = world.model if kind == "honest" else world.crafted(count, kind)
    return counted(observe(model, images, labels, LocalTraining(num_images=count)), images)


def local_epochs(world: World, count: int, seed: int) -> tuple[int, int, int]:
    _, images, labels = world.site(count, seed)
    plan = LocalTraining(
        num_images=count, batch_size=min(32, count), epochs=5, max_gradient_norm=5.0, **LOCAL
    )
    view = observe(world.crafted(count, "units"), images, labels, plan, kind="update")
    return counted(view, images)


def hidden_sum(world: World, count: int, seed: int) -> tuple[int, int, int]:
    _, images, labels = world.site(5 * count, seed)
    model, plan = world.crafted(5 * count, "units"), LocalTraining(num_images=count)
    parts = [
        observe(model, images[first : first + count], labels[first : first + count], plan)
        for first in range(0, 5 * count, count)
    ]
    return counted(securely_aggregated(parts), images)


def encodings(world: World, count: int, seed: int) -> tuple[int, int, int]:
    """What is counted are encodings; none of them is an image."""
    law = EncoderConfig(num_mixed=4)
    drawn, _, _ = world.site(max(count, 64), seed)
    made = make_replica(drawn, public=None, config=law, releases=1).encoded
    others = make_replica(world.public, public=None, config=law, releases=1).encoded
    model = world.crafted(count, "units", others.images.float())
    inputs, labels = made.images[:count].float(), made.labels[:count].float()
    return counted(observe(model, inputs, labels, LocalTraining(num_images=count)), inputs)


def private_view(world: World, count: int, seed: int) -> tuple[UpdateView, torch.Tensor]:
    """(view, images) of a site that trains crafted weights with DP-SGD."""
    drawn, images, _ = world.site(count, seed)
    crafted = world.crafted(count, "units")
    trained, batch, epochs = copy.deepcopy(crafted), min(32, count), 10
    config = TrainingConfig(
        epochs=epochs, batch_size=batch, learning_rate=0.05, weight_decay=0.0, device="cpu"
    )
    train_with_dp(trained, drawn, config, target_delta=1e-5, target_epsilon=8.0)
    after = dict(trained.named_parameters())
    update = {name: after[name].detach() - value.detach() for name, value in crafted.named_parameters()}
    plan = LocalTraining(
        num_images=count, batch_size=batch, epochs=epochs, learning_rate=0.05, momentum=config.momentum
    )
    C, H, W = world.private.image_shape
    return UpdateView(crafted, update, "update", plan, (C, H, W), world.private.num_classes), images


def largest_correlations(world: World, view: UpdateView, images: torch.Tensor) -> float:
    """Mean over images of the largest |correlation| with a unit's change, the mean image taken out."""
    mean = to_unit_range(world.public.images.copy()).flatten(1).mean(0)
    layer = first_dense_layer(view)
    assert layer is not None

    def unit(rows: torch.Tensor) -> torch.Tensor:
        rest = rows - (rows @ mean / (mean @ mean))[:, None] * mean
        normalized: torch.Tensor = nn.functional.normalize(rest, dim=1)
        return normalized

    table = unit(images.flatten(1)) @ unit(view.observed[layer.weight]).T
    return float(table.abs().amax(1).mean())


def correlations(world: World, count: int, repetitions: int) -> tuple[float, float]:
    """What a unit's change under DP-SGD says of the site's images, and of as many that were not there."""
    pairs = []
    for seed in range(repetitions):
        view, images = private_view(world, count, seed)
        others = world.site(2 * count, seed)[1][count:]
        pairs.append([largest_correlations(world, view, each) for each in (images, others)])
    inside, outside = np.mean(pairs, axis=0)
    return float(inside), float(outside)


def the_world(data: str | None, most: int) -> World:
    images = digits() if data is None else load_images(DATA / "images" / data)
    order = np.random.default_rng(0).permutation(len(images))[:most]
    half = len(order) // 2
    model = build_network("mlp", image_shape=images.image_shape, num_classes=images.num_classes)
    public = images.subset(order[half : half + STAND_INS])
    return World(images.subset(order[:half]), public, model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", help="file in the folder of images; default: scikit-learn's digits")
    parser.add_argument("--max-images", type=int, default=1797)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32, 64, 128])
    words = parser.parse_args()
    torch.set_num_threads(1)
    world = the_world(words.data, words.max_images)
    rows: dict[str, Callable[[int, int], tuple[int, int, int]]] = {
        "honest weights, one step": lambda n, seed: one_step(world, n, seed, "honest"),
        "trap units, one step": lambda n, seed: one_step(world, n, seed, "units"),
        "bins, one step": lambda n, seed: one_step(world, n, seed, "bins"),
        "trap units, 5 local epochs": lambda n, seed: local_epochs(world, n, seed),
        "trap units, sum over 5 sites": lambda n, seed: hidden_sum(world, n, seed),
        "trap units, encodings": lambda n, seed: encodings(world, n, seed),
        "trap units, DP-SGD, epsilon 8": lambda n, seed: counted(*private_view(world, n, seed)),
    }
    print("| weights sent | N | in theory | exact | close | verified | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for name, measure in rows.items():
        for count in words.sizes:
            total = 5 * count if "sum" in name else count
            started = time.process_time()
            results = np.array([measure(count, seed) for seed in range(words.repetitions)], dtype=float)
            seconds = (time.process_time() - started) / words.repetitions
            theory = f"{alone_in_theory(total, UNITS, 'bins' if 'bins' in name else 'units'):.0f}"
            figures = " | ".join(f"{value:.0f}" for value in results.mean(0))
            told = "-" if "honest" in name or "DP" in name else theory
            print(f"| {name} | {total} | {told} | {figures} | {seconds:.1f} |", flush=True)
    for count in words.sizes:
        inside, outside = correlations(world, count, words.repetitions)
        print(
            f"DP-SGD, N = {count}: a unit's change correlates {inside:.3f} with an image of the site, "
            f"{outside:.3f} with one of nobody"
        )


if __name__ == "__main__":
    main()
