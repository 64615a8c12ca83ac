"""Training the pair networks on the attacker's own mixtures of public images.

Axes: B rows of a batch, M sets of prototypes.

The published kind: fresh releases each step, as many pairs that share an image as others, logistic loss,
AdamW with a warm start and a cosine schedule over a budget of seconds, an exponential average of the
weights. The unmasked kind: the sign network is trained (:func:`..recovery.sign_recovery.train_sign_network`),
whitening and moments are measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from ...mixing import to_unit_range
from ..recovery.sign_recovery import train_sign_network
from ..view import AttackerView
from .own_release import OwnReleases
from .pair_architectures import UnmaskedPairs, WideResidualPairs
from .pair_network import BATCH_RELEASES, PairNetwork, PairNetworkSettings, counted_pairs, examples

BATCH_IMAGES = 24
BATCH_CALIBRATION = 150
PAIRS_PER_STEP = 128
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-4
AVERAGING = 0.99


def train_pair_network(
    view: AttackerView,
    settings: PairNetworkSettings,
    *,
    seed: int,
    progress: Callable[..., None] | None = None,
) -> PairNetwork:
    """Train on the attacker's own mixtures; ``seed`` is the attacker's.

    ``view`` gives public images, pool and law; its encodings and labels are not used.
    """
    if settings.architecture == "unmasked":
        return _train_unmasked(view, settings, seed=seed, progress=progress)
    device = _device(settings.device)
    releases = OwnReleases(view, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        C = view.public_images.image_shape[0]
        network = WideResidualPairs(C, settings.num_prototypes, depth=settings.depth, width=settings.width)
        network.to(device).train()
        average = {name: value.clone() for name, value in network.state_dict().items()}
        optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        began, step, spent = clock(), 0, 0.0
        while spent < settings.seconds and step != settings.max_steps:
            done = max(spent / settings.seconds, step / settings.max_steps if settings.max_steps else 0)
            rate = LEARNING_RATE * min(1.0, (step + 1) / 50) * 0.5 * (1.01 + math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = _loss(network, releases, settings.num_prototypes, device)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step, spent = step + 1, clock() - began
            _update_average(average, network, min(AVERAGING, step / (step + 10)))
            if progress is not None and step % 20 == 0:
                progress(int(spent), int(settings.seconds), f"pair network: loss {loss.item():.3f}")
        network.load_state_dict(average)
    return network.eval()


def _train_unmasked(
    view: AttackerView,
    settings: PairNetworkSettings,
    *,
    seed: int,
    progress: Callable[..., None] | None,
) -> UnmaskedPairs:
    network = UnmaskedPairs(view.public_images.image_shape, settings.num_prototypes)
    network.sign_network = train_sign_network(
        view.public_images,
        view.config,
        scheme=view.scheme,
        cpu_seconds=settings.seconds,
        seed=seed,
        progress=progress,
    )
    network.whiten_like(to_unit_range(view.public_images.images))
    own = OwnReleases(view, seed=seed + 17).draw(BATCH_CALIBRATION, BATCH_RELEASES)
    rows = torch.from_numpy(own.private_rows)
    shared = (rows[:, None, :, None] == rows[None, :, None, :]).flatten(2).any(2)
    with torch.inference_mode():
        features = network.features(own.magnitudes)
        squares = (features @ features.T).square()
        once = torch.ones_like(shared).triu(1)
        spread = squares[once & ~shared].mean()
        network.spread.copy_(spread.sqrt())
        network.shift.copy_((squares[once & shared].mean() - spread).clamp(min=0.1 * float(spread)).sqrt())
    return network.eval()


def _device(name: str | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _loss(
    network: WideResidualPairs, releases: OwnReleases, num_prototypes: int, device: torch.device
) -> torch.Tensor:
    prototypes, magnitudes, shared = examples(releases, num_prototypes, BATCH_IMAGES, BATCH_RELEASES)
    counted = counted_pairs(shared, num_prototypes)
    left, right = torch.nonzero(counted, as_tuple=True)
    truth = shared[left, right].float()
    balance = (1 - truth.mean()) / truth.mean().clamp(min=1e-3)  # both kinds as often
    few = torch.multinomial(1 + truth * (balance - 1), min(PAIRS_PER_STEP, len(left)))
    left, right, truth = left[few], right[few], truth[few]
    scores = network(prototypes[left].to(device), magnitudes[right].to(device))
    return functional.binary_cross_entropy_with_logits(scores, truth.to(device))


def _update_average(average: dict[str, torch.Tensor], network: nn.Module, keep: float) -> None:
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.dtype.is_floating_point:
                average[name].lerp_(value, 1 - keep)
            else:
                average[name].copy_(value)
