"""Inversion of updates where it is hard, and what follows from it where it is easy.

    python tests/benchmarks/update_inversion.py resnet --data cifar10_5k.npz [--steps 300 1200 4800]
    python tests/benchmarks/update_inversion.py released --data cifar10_5k.npz [--side 16]

resnet     one 32×32×3 photograph behind one gradient of a freshly initialised residual network with batch
           normalisation, label known, by the attack of Geiping et al. 2020: cosine distance, total
           variation, Adam on signs, rate 0.1 divided by ten after 3/8, 5/8 and 7/8 of the steps. Published
           runs take 4,800 steps and more, and up to 8 starts. Batch statistics unknown (none), the running
           ones of the weights sent (running), those of the image itself (exact).
released   encodings of n images, sent as gradients of a fully connected network on four encodings each; the
           server takes the encodings out and goes on as if they had been published: recovery, label-only.

Printed: SSIM as mean (least to largest) over images, SSIM of the mean public image in its place, processor
seconds of one attack on one thread.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from instahide.attacks.image_metrics import score_recovery
from instahide.attacks.recovery.recover import RecoveryView, recover_images
from instahide.attacks.recovery.sign_recovery import train_sign_network
from instahide.attacks.replica import make_replica
from instahide.attacks.settings import choose_evenly
from instahide.attacks.update_inversion import (
    InversionSettings,
    LocalTraining,
    build_network,
    invert,
    observe,
    view_of_recovered,
)
from instahide.attacks.update_inversion.cosine import cosine_inversion
from instahide.attacks.update_inversion.local_update import Simulator
from instahide.attacks.update_inversion.objective import Objective, batch_statistics, running_statistics
from instahide.encoder_config import EncoderConfig
from instahide.images import ImageSet
from instahide.mixing import to_unit_range


def photographs(path: Path) -> ImageSet:
    with np.load(path) as file:
        parts = [part for part in ("train", "test") if f"x_{part}" in file]
        images = np.concatenate([file[f"x_{part}"] for part in parts])
        return ImageSet(images, np.concatenate([file[f"y_{part}"] for part in parts]))


def residual_network(images: ImageSet, options: argparse.Namespace) -> None:
    model = build_network(
        options.network, image_shape=images.image_shape, num_classes=10, normalization="batch"
    )
    mean = to_unit_range(images.images[1000:]).mean(0)
    for statistics in options.statistics:
        for steps in options.steps:
            rows = []
            for number in range(options.images):
                image, label = to_unit_range(images.images[number : number + 1]), images.labels[number]
                wanted = torch.eye(10)[[label]]
                view = observe(model, image, wanted, LocalTraining(num_images=1))
                known = {
                    "none": None,
                    "running": running_statistics(model),
                    "exact": batch_statistics(model, image),
                }[statistics]
                objective = Objective(
                    Simulator(view),
                    total_variation=options.total_variation,
                    batch_norm=options.batch_norm,
                    statistics=known,
                )
                started = time.process_time()
                attempts = cosine_inversion(
                    objective, labels=wanted, restarts=options.restarts, steps=steps, seed=number
                )
                seconds = time.process_time() - started
                found = score_recovery(attempts[0].images.detach().float().numpy(), image.numpy()).mean_ssim
                trivial = score_recovery(mean[None].numpy(), image.numpy()).mean_ssim
                rows.append((found, trivial, attempts[0].unexplained, seconds))
            ssim, trivial, left, seconds = np.array(rows).T
            setting = f"{options.network}, batch statistics {statistics}, {steps} steps"
            spread = f"{ssim.mean():.3f} ({ssim.min():.3f}-{ssim.max():.3f})"
            print(
                f"{setting}, {options.restarts} start(s): SSIM {spread}  mean image {trivial.mean():.3f}  "
                f"unexplained {left.mean():.3f}  {np.median(seconds):.0f} s",
                flush=True,
            )


def released(images: ImageSet, options: argparse.Namespace) -> None:
    edge = (images.image_shape[1] - options.side) // 2
    inner = slice(edge, edge + options.side)
    images = replace(images, images=np.ascontiguousarray(images.images[:, :, inner, inner]))
    order = np.random.default_rng(0).permutation(len(images))
    own, similar = (images.subset(part) for part in np.array_split(order, 2))
    assert own.labels is not None
    private = choose_evenly(own.labels, options.num_images, 1)
    pool = ImageSet(own.images[np.setdiff1d(np.arange(len(own)), private)])
    config = EncoderConfig(num_mixed=4, num_private=2, mode="compat")
    replica = make_replica(own.subset(private), public=pool, config=config, releases=options.releases)
    model = build_network("mlp", image_shape=images.image_shape, num_classes=10, absolute_input=True)
    started, inversions = time.process_time(), []
    for first in range(0, len(replica.encoded), 4):
        part = slice(first, first + 4)
        inputs, labels = replica.encoded.images[part], replica.encoded.labels[part]
        view = observe(model, inputs, labels, LocalTraining(num_images=len(inputs)), sign_masked=True)
        inversions.append(invert(view, InversionSettings(seed=first)))
    taken = view_of_recovered(inversions, config, similar, scheme="cross", public_pool=pool)
    print(
        f"{len(taken.encodings)} of {len(replica.encoded)} encodings taken from gradients, "
        f"labels {'known' if taken.labels is not None else 'lost'}, {time.process_time() - started:.0f} s"
    )
    network = train_sign_network(similar, config, scheme="cross", cpu_seconds=options.training_seconds)
    truth = to_unit_range(replica.truth.images.images).numpy()
    given = replica.view(similar)
    for name, release in {"as published": given, "from the gradients": taken}.items():
        found = recover_images(RecoveryView(release, options.num_images), network=network, checks=False)
        print(f"{name}: SSIM {score_recovery(found.images.numpy(), truth).mean_ssim:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("resnet", "released"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", default="resnet32")
    parser.add_argument("--statistics", nargs="+", default=["none", "running", "exact"])
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1200, 4800])
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--total-variation", type=float, default=0.01)
    parser.add_argument("--batch-norm", type=float, default=0.01, help="weight of the batch statistics")
    parser.add_argument("--num-images", type=int, default=50, help="n, of released")
    parser.add_argument("--releases", type=int, default=4, help="T, of released")
    parser.add_argument("--side", type=int, default=16, help="pixels cut from the middle, of released")
    parser.add_argument("--training-seconds", type=float, default=40.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = photographs(options.data)
    (residual_network if options.what == "resnet" else released)(images, options)


if __name__ == "__main__":
    main()
