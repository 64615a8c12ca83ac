"""What some malicious hospitals do to the model under each rule of aggregation.

    python -m tests.benchmarks.malicious_sites                                    (digits, a few minutes)
    python -m tests.benchmarks.malicious_sites --data fashion_mnist_10k.npz --max-images 3000
    python -m tests.benchmarks.malicious_sites --concentration 0.5                (hospitals that differ)

Every update goes through the coordinator's own validation and rules; sites train as site workers do.

    sign flip    x − (xᵢ − x): the honest change turned round
    × 10         x + 10 (xᵢ − x): one site outvotes the rest
    label flip   trained on labels c → K − 1 − c (an ordinary update; validation cannot see it)
    noise        random weights within the norm of an honest update times 10

One of 5 sites, and two of 10. Printed: accuracy on test images nobody trained on, mean over seeds (range).
``clip`` is the plain mean with ``max-update-norm`` at 1.5 times an honest first update, ``over-norm`` clip.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from federation.config import RunConfig
from federation.coordinator.sites import Site, SiteBook
from federation.coordinator.strategies import build_aggregator
from federation.coordinator.validation import RejectedUpdateError, Update, UpdateValidator, update_norm
from federation.demo.data import digits, dirichlet_split
from federation.messages import TRAIN, Arrays, SiteReply
from federation.site.weights import load_weights, read_weights
from instahide.evaluation import evaluate
from instahide.images import ImageSet
from instahide.models import build_model
from instahide.readers import load_images
from instahide.training import train
from instahide.training_config import TrainingConfig

RULES = ("fedavg", "clip", "trimmed-mean", "median", "krum", "multi-krum")
COHORTS = ((5, 1), (10, 2))


@dataclass(frozen=True)
class Federation:
    """The images of each site, and the test images."""

    parts: list[ImageSet]
    test: ImageSet
    num_classes: int


def split(images: ImageSet, num_sites: int, concentration: float, seed: int) -> Federation:
    """A fifth for testing, the rest over the sites by Dirichlet(concentration) over classes."""
    assert images.labels is not None
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    test, rest = images.subset(order[: len(images) // 5]), images.subset(order[len(images) // 5 :])
    assert rest.labels is not None
    parts = dirichlet_split(rest.labels, num_sites, concentration=concentration, rng=rng)
    return Federation([rest.subset(part) for part in parts], test, int(images.labels.max()) + 1)


Attack = Callable[[Arrays, Arrays, np.random.Generator], Arrays]


def _moved(current: Arrays, honest: Arrays, factor: float) -> Arrays:
    return {
        name: np.asarray(array + np.float32(factor) * (honest[name] - array), dtype=np.float32)
        for name, array in current.items()
    }


def _noise(current: Arrays, honest: Arrays, rng: np.random.Generator) -> Arrays:
    size = sum(array.size for array in current.values())
    scale = 10 * update_norm(honest, current) / size**0.5
    return {
        name: np.asarray(array + scale * rng.standard_normal(array.shape), dtype=np.float32)
        for name, array in current.items()
    }


ATTACKS: dict[str, Attack | None] = {
    "none": None,
    "sign flip": lambda current, honest, rng: _moved(current, honest, -1.0),
    "x 10": lambda current, honest, rng: _moved(current, honest, 10.0),
    "noise": _noise,
    "label flip": None,  # of the data, not of the update
}


def accuracy_after(
    federation: Federation, rule: str, attack: str, malicious: int, *, rounds: int, seed: int
) -> float:
    """Test accuracy of the global model after ``rounds`` rounds with the first sites malicious."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    parts = list(federation.parts)
    if attack == "label flip":
        parts[:malicious] = [_flipped(part, federation.num_classes) for part in parts[:malicious]]
    model = build_model(
        "mlp",
        image_shape=federation.test.image_shape,
        num_classes=federation.num_classes,
        initialization_seed=seed,
    )
    book = SiteBook(Site(node_id=i + 1, name=f"site {i + 1}") for i in range(len(parts)))
    current = read_weights(model)
    config = _config(rule, len(parts), malicious, norm=0.0)
    for server_round in range(1, rounds + 1):
        trained = [_trained(model, current, part) for part in parts]
        if server_round == 1 and rule == "clip":
            norms = [update_norm(arrays, current) for arrays in trained[malicious:]]
            config = _config(rule, len(parts), malicious, norm=1.5 * float(np.median(norms)))
        change = ATTACKS[attack]
        if change is not None:
            trained[:malicious] = [change(current, arrays, rng) for arrays in trained[:malicious]]
        updates = _validated(config, book, trained, parts, current)
        current = build_aggregator(config).aggregate(server_round, current, updates)
    load_weights(model, current)
    return evaluate(model, federation.test).plain.accuracy


def _config(rule: str, num_sites: int, malicious: int, *, norm: float) -> RunConfig:
    strategy = "fedavg" if rule == "clip" else rule
    return RunConfig(
        strategy=strategy,
        minimum_sites=max(num_sites, 3),
        trim_fraction=malicious / num_sites,
        num_malicious_nodes=malicious,
        max_update_norm=norm,
        over_norm="clip",
    )


def _trained(model: torch.nn.Module, current: Arrays, part: ImageSet) -> Arrays:
    load_weights(model, current)
    train(
        model, part, TrainingConfig(epochs=2, batch_size=32, learning_rate=0.05, device="cpu", num_threads=1)
    )
    return read_weights(model)


def _flipped(part: ImageSet, num_classes: int) -> ImageSet:
    assert part.labels is not None
    return replace(part, labels=num_classes - 1 - part.labels)


def _validated(
    config: RunConfig, book: SiteBook, trained: list[Arrays], parts: list[ImageSet], current: Arrays
) -> list[Update]:
    """What the coordinator lets through."""
    validator = UpdateValidator(config, book)
    updates = []
    for node, (arrays, part) in enumerate(zip(trained, parts, strict=True), start=1):
        reply = SiteReply(
            site_name=f"site {node}", metrics={"num-examples": len(part), "train-loss": 0.0}, arrays=arrays
        )
        try:
            updates.append(validator.check(node, reply, current, TRAIN))
        except RejectedUpdateError:
            continue
    return updates


def table(
    images: ImageSet, *, rounds: int, seeds: int, concentration: float
) -> dict[tuple[int, str, str], list[float]]:
    """(sites, attack, rule) → accuracy of every seed."""
    found: dict[tuple[int, str, str], list[float]] = {}
    for num_sites, malicious in COHORTS:
        print(f"{malicious} of {num_sites} sites malicious")
        print(f"{'attack':12s}" + "".join(f"{rule:>22s}" for rule in RULES))
        for attack in ATTACKS:
            for rule in RULES:
                found[num_sites, attack, rule] = [
                    accuracy_after(
                        split(images, num_sites, concentration, seed),
                        rule,
                        attack,
                        malicious,
                        rounds=rounds,
                        seed=seed,
                    )
                    for seed in range(seeds)
                ]
            cells = [found[num_sites, attack, rule] for rule in RULES]
            print(
                f"{attack:12s}"
                + "".join(f"{np.mean(cell):8.3f} ({min(cell):.2f} to {max(cell):.2f})" for cell in cells),
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="labelled images; left out, scikit-learn's digits")
    parser.add_argument("--max-images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--concentration", type=float, default=100.0, help="of Dirichlet; 0.5: very different sites"
    )
    options = parser.parse_args()
    images = digits() if options.data is None else load_images(options.data)
    if len(images) > options.max_images:
        images = images.subset(np.random.default_rng(0).permutation(len(images))[: options.max_images])
    table(images, rounds=options.rounds, seeds=options.seeds, concentration=options.concentration)


if __name__ == "__main__":
    main()
