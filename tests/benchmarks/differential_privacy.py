"""What differential privacy costs in accuracy and time, on scikit-learn's digits.

    python -m tests.benchmarks.differential_privacy example     DP-SGD at three sites, FedAvg over rounds
    python -m tests.benchmarks.differential_privacy client      noise on the mean of 5, 50 and 500 sites

1,437 images of 8×8 train, 360 test; small-cnn, and a smaller network under ``client``. Every run is made
``--runs`` times from other initial weights and the median accuracy printed with the smallest and
largest. Seconds are processor time of one step of one site on one thread. The private parts are the
product's own: train_with_dp, NoisyMean.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from federation.accounting import PrivacyEvent, epsilon_of
from federation.config import RunConfig
from federation.coordinator.client_privacy import NoisyMean, with_client_privacy
from federation.coordinator.strategies import build_aggregator
from federation.coordinator.validation import Update
from federation.messages import Arrays
from federation.site.weights import load_weights, read_weights
from instahide.dp_training import train_with_dp
from instahide.evaluation import evaluate
from instahide.images import ImageSet
from instahide.models import ImageClassifier, build_model
from instahide.training import train
from instahide.training_config import TrainingConfig

Column = NDArray[np.float64]
DELTA = 1e-5
NAMES = [str(digit) for digit in range(10)]


def digits() -> tuple[ImageSet, ImageSet]:
    """1,437 training and 360 test images, in one fixed shuffled order."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)[order]
    labels = bunch.target.astype(np.int64)[order]
    return ImageSet(images[:1437], labels[:1437], NAMES), ImageSet(images[1437:], labels[1437:], NAMES)


def parts(data: ImageSet, count: int) -> list[ImageSet]:
    """``count`` sites with about equal numbers of images."""
    rows = np.array_split(np.arange(len(data)), count)
    return [ImageSet(data.images[own], data.labels[own], NAMES) for own in rows]


def small_cnn(seed: int) -> ImageClassifier:
    return build_model("small-cnn", image_shape=(1, 8, 8), num_classes=10, initialization_seed=seed)


def update_of(number: int, arrays: Arrays) -> Update:
    return Update(node_id=number, site_name=str(number), arrays=arrays, num_examples=1, metrics={})


# --- an image at a site -------------------------------------------------------------------------------


def example_level(runs: int) -> None:
    """Three sites, ten rounds of two epochs at batches of 64."""
    training, test = digits()
    sites, rounds, batch = parts(training, 3), 10, 64
    plain = TrainingConfig(
        epochs=2, batch_size=batch, learning_rate=0.05, lr_schedule="constant", device="cpu", num_threads=1
    )
    private = TrainingConfig(
        epochs=2,
        batch_size=batch,
        learning_rate=0.2,
        momentum=0.5,
        weight_decay=0.0,
        lr_schedule="constant",
        device="cpu",
        num_threads=1,
    )
    q = batch / len(sites[0])

    def without(model: ImageClassifier, data: ImageSet) -> int:
        train(model, data, plain)
        return 2 * -(-len(data) // batch)

    say("plain SGD", "none", *federated(sites, test, rounds, runs, without))
    for z in (4.0, 2.0, 1.0, 0.7):

        def with_noise(model: ImageClassifier, data: ImageSet, z: float = z) -> int:
            result = train_with_dp(
                model, data, private, target_delta=DELTA, noise_multiplier=z, max_grad_norm=1.0, sample_rate=q
            )
            return result.num_steps

        accuracies, seconds, steps = federated(sites, test, rounds, runs, with_noise)
        event = PrivacyEvent(
            run_name="r",
            server_round=1,
            mechanism="dp-sgd",
            noise_multiplier=z,
            sample_rate=q,
            num_steps=steps,
            num_draws=steps * 30_000,
        )
        say(
            f"noise multiplier {z:g}",
            f"{epsilon_of([event] * rounds, DELTA):.2f}",
            accuracies,
            seconds,
            steps,
        )


def federated(
    sites: list[ImageSet],
    test: ImageSet,
    rounds: int,
    runs: int,
    local: Callable[[ImageClassifier, ImageSet], int],
) -> tuple[list[float], float, int]:
    """Accuracies of the runs, median processor seconds of a step, steps of a site in a round."""
    accuracies, seconds, steps = [], [], 1
    mean = build_aggregator(RunConfig())
    for seed in range(runs):
        model = small_cnn(seed)
        weights = read_weights(model)
        for server_round in range(1, rounds + 1):
            updates = []
            for number, data in enumerate(sites, start=1):
                load_weights(model, weights)
                started = time.process_time()
                steps = local(model, data)
                seconds.append((time.process_time() - started) / steps)
                updates.append(update_of(number, read_weights(model)))
            weights = mean.aggregate(server_round, weights, updates)
        load_weights(model, weights)
        accuracies.append(evaluate(model, test).plain.accuracy)
    return accuracies, statistics.median(seconds), steps


def say(what: str, epsilon: str, accuracies: list[float], seconds: float, steps: int) -> None:
    print(
        f"{what}: epsilon {epsilon}, accuracy {statistics.median(accuracies):.3f} "
        f"({min(accuracies):.3f} to {max(accuracies):.3f}), {1000 * seconds:.1f} ms a step, {steps} steps",
        flush=True,
    )


# --- a whole site -------------------------------------------------------------------------------------

WIDTHS = (64, 32, 10)
"""A network of 2,410 weights: what is trained on top of a public model may be as small."""


def client_level(runs: int) -> None:
    """Twenty rounds; a site takes five full-batch steps a round; updates clipped to 1."""
    training, test = digits()
    for count in (5, 50, 500):
        images, labels = padded(parts(training, count))
        for z in (0.0, 1.5, 2.5, 5.0):
            accuracies, epsilon = [], "none"
            for seed in range(runs):
                with tempfile.TemporaryDirectory() as folder:
                    weights, epsilon = client_run(images, labels, z, seed, Path(folder))
                scores = forward(stack(weights, 1), flat(test.images)[None])[1][0]
                accuracies.append(float(np.mean(scores.argmax(axis=1) == test.labels)))
            size = sum(array.size for array in weights.values())
            print(
                f"{count} sites, noise multiplier {z:g}: epsilon {epsilon}, accuracy "
                f"{statistics.median(accuracies):.3f} ({min(accuracies):.3f} to {max(accuracies):.3f}), "
                f"noise {z * size**0.5 / count:.2f} times as long as the longest update",
                flush=True,
            )


def client_run(
    images: Column, labels: Column, noise_multiplier: float, seed: int, folder: Path
) -> tuple[Arrays, str]:
    """Last weights and epsilon of one run; ``images`` (S, n, 64), ``labels`` (S, n, 10), zero where none."""
    rng = np.random.default_rng(seed)
    before, hidden, after = WIDTHS
    weights: Arrays = {
        "w1": (rng.standard_normal((before, hidden)) * (2 / before) ** 0.5).astype(np.float32),
        "b1": np.zeros(hidden, np.float32),
        "w2": (rng.standard_normal((hidden, after)) * (1 / hidden) ** 0.5).astype(np.float32),
        "b2": np.zeros(after, np.float32),
    }
    rule = build_aggregator(RunConfig())
    if noise_multiplier:
        config = RunConfig(
            differential_privacy="client",
            noise_multiplier=noise_multiplier,
            max_update_norm=1.0,
            over_norm="clip",
        )
        rule = with_client_privacy(rule, config, folder, weights)
    for server_round in range(1, 21):
        local = stack(weights, len(images))
        for _ in range(5):
            gradients = gradient(local, images, labels)
            local = {name: array - 0.3 * gradients[name] for name, array in local.items()}
        updates = [
            update_of(site + 1, {name: array[site].astype(np.float32) for name, array in local.items()})
            for site in range(len(images))
        ]
        weights = rule.aggregate(server_round, weights, updates)
    epsilon = f"{rule.guarantee(DELTA).epsilon:.2f}" if isinstance(rule, NoisyMean) else "none"
    return weights, epsilon


def padded(sites: list[ImageSet]) -> tuple[Column, Column]:
    longest = max(len(site) for site in sites)
    images, labels = np.zeros((len(sites), longest, 64)), np.zeros((len(sites), longest, 10))
    for row, site in enumerate(sites):
        assert site.labels is not None
        images[row, : len(site)] = flat(site.images)
        labels[row, np.arange(len(site)), site.labels] = 1.0
    return images, labels


def flat(images: np.ndarray) -> Column:
    return np.asarray(images.reshape(len(images), 64) / 127.5 - 1.0)


def stack(weights: Arrays, count: int) -> dict[str, Column]:
    return {name: np.repeat(array[None].astype(np.float64), count, axis=0) for name, array in weights.items()}


def forward(weights: dict[str, Column], images: Column) -> tuple[Column, Column]:
    """Hidden values (S, n, 32) and scores (S, n, 10) of S networks at once."""
    hidden = np.maximum(images @ weights["w1"] + weights["b1"][:, None], 0.0)
    return hidden, hidden @ weights["w2"] + weights["b2"][:, None]


def gradient(weights: dict[str, Column], images: Column, labels: Column) -> dict[str, Column]:
    """Of the mean cross-entropy of each site over its own images."""
    hidden, scores = forward(weights, images)
    scores = np.exp(scores - scores.max(axis=2, keepdims=True))
    there = labels.sum(axis=2, keepdims=True)
    error = (scores / scores.sum(axis=2, keepdims=True) - labels) * there / there.sum(axis=1, keepdims=True)
    inner = (error @ weights["w2"].swapaxes(1, 2)) * (hidden > 0)
    return {
        "w1": images.swapaxes(1, 2) @ inner,
        "b1": inner.sum(axis=1),
        "w2": hidden.swapaxes(1, 2) @ error,
        "b2": error.sum(axis=1),
    }


def main() -> None:
    """One of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("example", "client"))
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"example": example_level, "client": client_level}[options.what](options.runs)


if __name__ == "__main__":
    main()
