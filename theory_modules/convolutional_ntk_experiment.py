r"""Accuracy against the number of training images: four convolutional kernels and a trained network.

The published picture (Arora et al. 2019, Li et al. 2019; CIFAR-10, 50,000 images): 66 % without pooling, 77 %
with global pooling, 82 % with local pooling and flips, 89 % with the patch front end before it; 83 % a finite
network with global pooling (66 and 82 as remembered, not read again). Here the same comparison on any
labelled images, at sizes that end while one waits:

    vanilla      no pooling, all layers trained
    global       global average pooling, first and last layer fixed, as published
    local        local pooling, the image and its mirror image
    patches      random-patch features, then local pooling and flips
    network      a finite network of the same depth with global pooling, trained by SGD with mirror images

Inputs are standardised by channel with the training images' mean and deviation. Regression without ridge (a
jitter where rounding asks for one). Larger training sets contain the smaller ones; classes are balanced as
far as they allow. A kernel is computed once, for the largest size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .convolutional_ntk import convolutional_ntk
from .kernel_input import KernelInputError
from .kernel_regression import KernelClassifier
from .random_patches import RandomPatchFeatures

KERNELS = ("vanilla", "global", "local", "patches")
METHODS = (*KERNELS, "network")
Images = NDArray[np.float32]
Labels = NDArray[np.int64]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Experiment:
    """``num_relus`` convolutions with a ReLU each; windows of 2r + 1; patches; SGD epochs."""

    sizes: tuple[int, ...] = (100, 200, 400)
    num_relus: int = 5
    pooling_radius: int = 2
    num_patches: int = 64
    patch_size: int = 5
    network_width: int = 64
    network_epochs: int = 40
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """``cpu_seconds`` of the point alone; a kernel's, computed once, are the largest size's."""

    method: str
    num_train: int
    accuracy: float
    cpu_seconds: float


def nested_choice(labels: Labels, size: int, seed: int) -> NDArray[np.int64]:
    """An order of ``size`` rows whose beginnings are balanced: a row of each class in turn."""
    generator = np.random.default_rng(seed)
    if size > len(labels):
        raise KernelInputError(f"{size} training images are asked for and there are {len(labels)}")
    places = np.empty(len(labels))
    for value in np.unique(labels):
        rows = (labels == value).nonzero()[0]
        places[generator.permutation(rows)] = np.arange(len(rows)) + generator.random()
    return np.argsort(places, kind="stable")[:size]


def standardised(train: Images, others: Images) -> tuple[Images, Images]:
    mean, deviation = train.mean((0, 2, 3), keepdims=True), train.std((0, 2, 3), keepdims=True)
    deviation = np.where(deviation > 0, deviation, 1)
    return ((train - mean) / deviation).astype(np.float32), ((others - mean) / deviation).astype(np.float32)


def accuracy_curves(
    train: Images,
    train_labels: Labels,
    test: Images,
    test_labels: Labels,
    methods: tuple[str, ...] = METHODS,
    experiment: Experiment = Experiment(),
    *,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Point]:
    """Accuracies of every method at every size. Images (N, C, H, W), labels (N,).

    Raises:
        KernelInputError: more images asked for than there are, one class only, images too small for a patch.
    """
    if len(np.unique(train_labels)) < 2:
        raise KernelInputError("the training images are of one class; give at least two")
    sizes = sorted(set(experiment.sizes))
    chosen = nested_choice(train_labels, sizes[-1], experiment.seed)
    train, train_labels = train[chosen], train_labels[chosen]
    train, test = standardised(train, test)
    for method in methods:
        start = time.process_time()
        if method == "network":
            for size in sizes:
                start = time.process_time()
                score = network_accuracy(
                    train[:size], train_labels[:size], test, test_labels, experiment, progress
                )
                yield Point(method, size, score, time.process_time() - start)
            continue
        inputs, options = _inputs_and_options(method, train, test, experiment)

        def told(done: int, total: int, method: str = method) -> None:
            if progress is not None:
                progress(method, done, total)

        options |= {"depth": experiment.num_relus + 1, "num_threads": num_threads, "progress": told}
        k_train_train = convolutional_ntk(inputs[0], **options)
        k_test_train = convolutional_ntk(inputs[1], inputs[0], **options)
        spent = time.process_time() - start
        for size in sizes:
            classifier = KernelClassifier().fit(k_train_train[:size, :size], train_labels[:size])
            answers = classifier.predict(k_test_train[:, :size])
            own = spent if size == sizes[-1] else 0.0
            yield Point(method, size, float((answers == test_labels).mean()), own)


def _inputs_and_options(
    method: str, train: Images, test: Images, experiment: Experiment
) -> tuple[tuple[Images, Images], dict[str, Any]]:
    if method == "vanilla":
        return (train, test), {"pooling": "none"}
    if method == "global":
        return (train, test), {"pooling": "global", "fixed_layers": "first-and-last"}
    if method == "patches":
        features = RandomPatchFeatures(
            experiment.num_patches, experiment.patch_size, random_state=experiment.seed
        ).fit(train)
        train, test = features.transform(train), features.transform(test)
    return (train, test), {"pooling": "local", "pooling_radius": experiment.pooling_radius, "flip": True}


class FiniteNetwork(nn.Module):
    """The kernel's architecture at finite width: convolutions, ReLUs, global average pooling, one layer."""

    def __init__(self, channels: int, num_classes: int, num_relus: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(num_relus):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images).mean((2, 3)))  # type: ignore[no-any-return]


def network_accuracy(
    train: Images,
    train_labels: Labels,
    test: Images,
    test_labels: Labels,
    experiment: Experiment,
    progress: Progress | None = None,
) -> float:
    """Accuracy of the finite network after SGD with momentum, a one-cycle rate and random mirror images."""
    generator = torch.Generator().manual_seed(experiment.seed)
    classes, targets = np.unique(train_labels, return_inverse=True)
    x, y = torch.from_numpy(train), torch.from_numpy(targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        model = FiniteNetwork(train.shape[1], len(classes), experiment.num_relus, experiment.network_width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    batch = min(32, len(x))
    steps = experiment.network_epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)
    done = 0
    for _ in range(experiment.network_epochs):
        for rows in torch.split(torch.randperm(len(x), generator=generator), batch):
            images = x[rows]
            flipped = torch.rand(len(rows), generator=generator) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(3), images)
            loss = nn.functional.cross_entropy(model(images), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            if progress is not None:
                progress("network", done, steps)
    with torch.inference_mode():
        answers = torch.cat([model(part).argmax(1) for part in torch.split(torch.from_numpy(test), 256)])
    return float((classes[answers.numpy()] == test_labels).mean())


def draw(points: list[Point], path: Any) -> None:
    """Accuracy over training images on a logarithmic axis, one line a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(point.method for point in points):
        own = [point for point in points if point.method == method]
        axes.plot([p.num_train for p in own], [100 * p.accuracy for p in own], marker="o", label=method)
    axes.set_xscale("log")
    axes.set_xticks(
        sorted({p.num_train for p in points}), labels=[str(n) for n in sorted({p.num_train for p in points})]
    )
    axes.minorticks_off()
    axes.set_xlabel("training images")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, format="png")
