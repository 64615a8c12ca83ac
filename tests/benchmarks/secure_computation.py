"""What one training step costs when two parties compute it on shares of everything.

    python -m tests.benchmarks.secure_computation [--network mlp] [--images 64] [--steps 3]

The network is the small one of the comparison of defences: the fully connected ``mlp``, or the two
convolutions of ``small-cnn`` without its GroupNorm, which the library does not have. Weights, images and
labels are shared additively between two processes on this machine (CrypTen: Knott et al., NeurIPS 2021;
products by Beaver triples from a trusted first party, comparisons by binary shares, the exponential
approximated); forward, loss, backward and the step of plain SGD run on shares. The clear step is the same in
torch on one thread.
The new weights are compared: a step that computed something else has no cost worth telling.

Two local processes have no network between them: bytes and rounds are printed, so that the time of a
real link can be added (bytes / bandwidth + rounds × round trip).

Needs CrypTen, which is no dependency of this package: install ``crypten`` without its dependencies (it asks
for a withdrawn package named sklearn), and ``omegaconf``, ``onnx`` and ``pandas`` with theirs. Its
converter from ONNX imports a module that current torch lacks; it is not used here, and an empty one is
put in its place.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import types
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

CLASSES = 10
LEARNING_RATE = 0.05
ALLOWED_DIFFERENCE = 0.05
"""Of a weight, in units of the largest change: shares have 16 binary places, and exp is approximated."""


def main() -> int:
    """Print cost of the clear step and of the shared one, and their ratio; 1 where the library is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=("mlp", "cnn", "both"), default="both")
    parser.add_argument("--images", type=int, default=64, help="of one step, 8x8")
    parser.add_argument("--steps", type=int, default=3, help="repetitions; the median is told")
    options = parser.parse_args()
    try:
        crypten = load_crypten()
    except ImportError as error:
        print(f"not measured: CrypTen cannot be imported ({error})")
        return 1
    print(f"CrypTen {crypten.__version__}, torch {torch.__version__}, {options.images} images of 8x8 a step")
    networks = ("mlp", "cnn") if options.network == "both" else (options.network,)
    # Parties are forks, and a process whose autograd has run should not be forked: the clear steps come last.
    answers = {name: run_two_parties(name, options.images, options.steps) for name in networks}
    for name, steps in answers.items():
        compare(name, options.images, steps)
    return 0


def compare(network: str, num_images: int, answers: list[list[dict[str, Any]]]) -> None:
    """Time the step in the clear, compare cost and weights with those of the two parties, print one line."""
    num_steps = len(answers[0])
    clear = [clear_step(network, num_images) for _ in range(20)]
    difference = max(step["difference"] for step in answers[0])
    if difference > ALLOWED_DIFFERENCE:
        raise AssertionError(f"{network}: the shared step's weights differ by {difference:.2g} of the change")
    wall, cpu = (statistics.median(step[kind] for step in clear) for kind in ("wall", "cpu"))
    shared_wall = statistics.median(step["wall"] for step in answers[0])
    # Both parties work, on one machine here: their processor time is added.
    shared_cpu = statistics.median(sum(party[step]["cpu"] for party in answers) for step in range(num_steps))
    sent, rounds = answers[0][0]["bytes"], answers[0][0]["rounds"]
    print(
        f"{network}: clear {1000 * cpu:.2f} ms of processor time ({1000 * wall:.2f} ms wall), on shares "
        f"{shared_cpu:.2f} s of both parties ({shared_wall:.2f} s wall): {shared_cpu / cpu:,.0f} times the "
        f"processor time, {shared_wall / wall:,.0f} times the wall time; {sent / 1e6:.1f} MB sent by each "
        f"party in {rounds} rounds; largest difference of a weight {difference:.1e} of the largest change"
    )


def start(network: str) -> nn.Sequential:
    """The network before the step; the same at every call."""
    torch.manual_seed(0)
    if network == "mlp":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, CLASSES),
        )
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, CLASSES),
    )


def batch(num_images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 1, 8, 8) in [-1, 1], and labels as unit vectors (B, K)."""
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.uniform(-1, 1, (num_images, 1, 8, 8)).astype(np.float32))
    return images, torch.eye(CLASSES)[torch.from_numpy(rng.integers(0, CLASSES, num_images))]


def clear_step(network: str, num_images: int) -> dict[str, Any]:
    """One step of SGD in torch on one thread."""
    torch.set_num_threads(1)
    model, (images, labels) = start(network), batch(num_images)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    wall, cpu = time.perf_counter(), time.process_time()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return {**taken, "weights": [value.detach() for value in model.parameters()]}


def shared_step(crypten: Any, network: str, num_images: int) -> dict[str, Any]:
    """One step at one of two parties, who hold shares; what it sent and, opened afterwards, the weights."""
    model, (images, labels) = on_shares(crypten, network), batch(num_images)
    shared_images, shared_labels = (crypten.cryptensor(part, src=0) for part in (images, labels))
    loss_of = crypten.nn.CrossEntropyLoss()
    link = crypten.communicator.get()
    link.reset_communication_stats()
    wall, cpu = time.perf_counter(), time.process_time()
    loss = loss_of(model(shared_images), shared_labels)
    model.zero_grad()
    loss.backward()
    model.update_parameters(LEARNING_RATE)
    taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    sent = link.get_communication_stats()
    model.decrypt()
    weights = [value.detach() for value in model.parameters()]
    return {**taken, "bytes": sent["bytes"], "rounds": sent["rounds"], "weights": weights}


def on_shares(crypten: Any, network: str) -> Any:
    """CrypTen's copy of :func:`start`, shared."""
    layers = []
    for layer in start(network):
        name = type(layer).__name__
        if isinstance(layer, nn.Linear):
            copied = crypten.nn.Linear(layer.in_features, layer.out_features)
        elif isinstance(layer, nn.Conv2d):
            sizes = (layer.in_channels, layer.out_channels, layer.kernel_size[0])
            copied = crypten.nn.Conv2d(*sizes, stride=layer.stride[0], padding=layer.padding[0], bias=False)
        else:
            copied = getattr(crypten.nn, name)()
        for key, value in layer.named_parameters():
            copied.set_parameter(key, value.detach().clone())
        layers.append(copied)
    model = crypten.nn.Sequential(*layers)
    model.encrypt()
    model.train()
    return model


def run_two_parties(network: str, num_images: int, num_steps: int) -> list[list[dict[str, Any]]]:
    """The steps' figures of each of two processes."""
    crypten = load_crypten()

    def party() -> list[dict[str, Any]]:
        torch.set_num_threads(1)
        crypten.config.cfg.communicator.verbose = True  # count bytes and rounds
        steps = [shared_step(crypten, network, num_images) for _ in range(num_steps)]
        clear = clear_step(network, num_images)["weights"]
        for step in steps:  # compared here: the library's queue holds small answers only
            step["difference"] = largest_difference(clear, step.pop("weights"), start(network))
        return steps

    answers = crypten.mpc.run_multiprocess(world_size=2)(party)()
    if answers is None:
        raise RuntimeError("a party failed")
    return list(answers)


def largest_difference(clear: list[torch.Tensor], shared: list[torch.Tensor], before: nn.Sequential) -> float:
    """Largest difference of a weight, in units of the largest change that the clear step made."""
    old = [value.detach() for value in before.parameters()]
    change = max(float((new - was).abs().max()) for new, was in zip(clear, old, strict=True))
    return max(float((a - b).abs().max()) for a, b in zip(clear, shared, strict=True)) / change


def load_crypten() -> Any:
    """The library, its unused converter kept quiet; ImportError where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        missing = "torch.onnx._internal.registration"
        stand_in = types.ModuleType(missing)
        stand_in.registry = None  # type: ignore[attr-defined]
        sys.modules.setdefault(missing, stand_in)
        import crypten
        import crypten.communicator
        import crypten.config
        import crypten.mpc
    return crypten


if __name__ == "__main__":
    sys.exit(main())
