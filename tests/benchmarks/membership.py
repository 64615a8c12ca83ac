"""Known-image membership on replicas: what one release tells about who is inside.

    python tests/benchmarks/membership.py [--data cifar.npz] [--replicas 6] [--first-seed 100]
                                          [--settings labels-once query ...] [--num-mixed 4 6] [--modes ...]
                                          [--releases 5 10 0]

100 private photographs, 1,200 strangers, all other images as public pool; every replica has other images and
fresh secrets. Settings:

labels-once   two private sources, labels published; only encodings kept so that every private image is in
              exactly one (its partner use counted): 86 or so members in 43 encodings
labels-both   one whole epoch: each image is in two encodings, as its own and as a partner
query         inference: encode_views, the image has the largest coefficient; no label
published     inference as first published: one private source under the law of training, no lower bound on
              its coefficient; no label
model         200 members and 200 others: a network trained on T releases of the members (T = 0: new ones
              every epoch), attacked with 16 shadow models, beside the attack on those very encodings

Printed: AUC and true-positive rate at 1 % and 0.1 % false positives as mean (least to largest) over
replicas, with the pool known and searched, by likelihood alone, and of the nearest encoding; processor
seconds of one attack. Of setting model: of the encodings, and of the network by RMIA and LiRA, asked with
plain images and with ten encoded views.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from instahide import Encoder, EncoderConfig, ImageSet
from instahide.attacks.cost import Cost
from instahide.attacks.membership import known_image_membership
from instahide.attacks.model_membership import model_membership, train_shadow_models
from instahide.attacks.replica import make_replica
from instahide.attacks.view import AttackerView, AttackResult
from instahide.encoded_dataset import EncodedDataset
from instahide.training_config import TrainingConfig

DATA = Path(os.environ.get("INSTAHIDE_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))
NUM_PRIVATE, NUM_STRANGERS = 100, 1200
NUM_CANDIDATES, NUM_SHADOWS = 400, 16
TRAINING = TrainingConfig(epochs=60, batch_size=64, learning_rate=0.05, weight_decay=5e-4)
SETTINGS = ("labels-once", "labels-both", "query", "published", "model")
COLUMNS = (
    "auc",
    "tpr_at_1_percent_fpr",
    "tpr_at_0.1_percent_fpr",
    "auc_likelihood",
    "tpr_at_1_percent_fpr_likelihood",
)


def photographs(path: Path) -> ImageSet:
    with np.load(path) as file:
        parts = [name for name in ("train", "test") if f"x_{name}" in file]
        images = np.concatenate([file[f"x_{name}"] for name in parts])
        return ImageSet(images, np.concatenate([file[f"y_{name}"] for name in parts]))


def once_only(
    private_rows: NDArray[np.int64], num_images: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Encodings that share no private image, taken greedily, and (n,) the images that are in one of them."""
    used, kept = np.zeros(num_images, dtype=bool), []
    for row, sources in enumerate(private_rows):
        if not used[sources].any():
            used[sources] = True
            kept.append(row)
    return np.array(kept), used


def attack(
    images: ImageSet, setting: str, num_mixed: int, mode: str, releases: int, seed: int
) -> AttackResult:
    order = np.random.default_rng(seed).permutation(len(images))
    private = images.subset(order[:NUM_PRIVATE])
    others = order[NUM_PRIVATE : NUM_PRIVATE + NUM_STRANGERS]
    pool = ImageSet(images.images[order[NUM_PRIVATE + NUM_STRANGERS :]])
    inside, uses, role = np.ones(NUM_PRIVATE, dtype=bool), 1, "training"
    if setting == "query":
        config = EncoderConfig(num_mixed=num_mixed, mode=mode)
        encoder = Encoder(config, private=images.subset(others[:50]), public=pool)
        view = AttackerView(encoder.encode_views(private, 1)[0], None, config, "cross", pool, pool)
        role = "query"
    elif setting == "published":
        config = EncoderConfig(num_mixed=num_mixed, num_private=1, mode=mode, min_private_sum=0.0)
        view = make_replica(private, public=pool, config=config, releases=1).view(show_labels=False)
    else:
        config = EncoderConfig(num_mixed=num_mixed, num_private=2, mode=mode)
        replica = make_replica(private, public=pool, config=config, releases=releases)
        view, uses = replica.view(), 2 * releases
        if setting == "labels-once":
            rows, inside = once_only(replica.truth.private_rows, NUM_PRIVATE)
            labels = replica.encoded.labels[rows]
            view, uses = AttackerView(view.encodings[rows], labels, config, "cross", pool, pool), 1
    candidates = images.subset(np.concatenate([order[:NUM_PRIVATE][inside], others]))
    truth = np.arange(len(candidates)) < inside.sum()
    return known_image_membership(view, candidates, truth, uses=uses, role=role, check=False)


def attack_model(images: ImageSet, num_mixed: int, mode: str, releases: int, seed: int) -> dict[str, float]:
    """Both attacks with the same members, others, releases."""
    order = np.random.default_rng(seed).permutation(len(images))
    candidates, pool = images.subset(order[:NUM_CANDIDATES]), ImageSet(images.images[order[NUM_CANDIDATES:]])
    law = EncoderConfig(num_mixed=num_mixed, num_private=2, mode=mode)
    found: dict[str, float] = {}
    with Cost() as cost:
        run = train_shadow_models(
            candidates,
            num_shadows=NUM_SHADOWS,
            training=TRAINING,
            law=law,
            public=pool,
            releases=max(1, releases),
            fresh_every_epoch=releases == 0,
            seed=seed,
        )
        for queries in run.query_kinds:
            metrics = model_membership(run.view(queries=queries), run.truth(), check=False).metrics
            found[f"RMIA {queries}"] = metrics["auc"]
            found[f"LiRA {queries}"] = metrics["auc_lira_online"]
            found[f"TPR at 1 % FPR {queries}"] = metrics["tpr_at_1_percent_fpr"]
    found["accuracy inside"], found["outside"] = run.accuracy_inside, run.accuracy_outside
    found["seconds"] = cost.cpu_seconds
    if run.released:
        view = AttackerView.of(_together(run.released), pool, public_pool=pool)
        uses = 2 * len(run.released)
        metrics = known_image_membership(view, candidates, run.truth(), uses=uses, check=False).metrics
        found["encodings"], found["encodings, TPR at 1 % FPR"] = (
            metrics["auc"],
            metrics["tpr_at_1_percent_fpr"],
        )
    return found


def _together(releases: tuple[EncodedDataset, ...]) -> EncodedDataset:
    images, labels = (torch.cat([getattr(one, name) for one in releases]) for name in ("images", "labels"))
    return replace(releases[0], images=images, labels=labels)


def model_row(results: list[dict[str, float]]) -> str:
    cells = []
    for name in results[0]:
        values = [result[name] for result in results]
        cells.append(f"{name} {np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})")
    return "  ".join(cells)


def row(results: list[AttackResult]) -> str:
    cells = []
    for name in COLUMNS:
        values = [result.metrics[name] for result in results]
        cells.append(f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})")
    nearest = np.mean([result.baselines["auc"] for result in results])
    seconds = np.median([result.cpu_seconds for result in results])
    return "  ".join([*cells, f"{nearest:.3f}", f"{seconds:.1f} s"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA / "images/cifar10_5k.npz")
    parser.add_argument("--replicas", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=["labels-once", "query", "published"]
    )
    parser.add_argument("--num-mixed", nargs="+", type=int, default=[4, 6])
    parser.add_argument("--modes", nargs="+", default=["compat", "hardened"])
    parser.add_argument("--releases", type=int, nargs="+", default=[1], help="T, of labels-both and model")
    options = parser.parse_args()
    images = photographs(options.data)
    print("setting, k, mode:", ", ".join(COLUMNS), "nearest encoding, processor time", sep="  ")
    for setting in options.settings:
        for num_mixed in options.num_mixed:
            for mode in options.modes:
                seeds = range(options.first_seed, options.first_seed + options.replicas)
                for T in options.releases if setting in ("labels-both", "model") else [1]:
                    name = f"{setting} k={num_mixed} {mode} T={T or 'fresh'}:"
                    if setting == "model":
                        runs = [attack_model(images, num_mixed, mode, T, seed) for seed in seeds]
                        print(name, model_row(runs), flush=True)
                    else:
                        results = [attack(images, setting, num_mixed, mode, T, seed) for seed in seeds]
                        print(name, row(results), flush=True)


if __name__ == "__main__":
    main()
