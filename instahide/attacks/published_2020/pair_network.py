"""Do two encodings share a private image? A network the attacker trains on mixtures of public images.

Axes: N encodings, B rows of a batch, M images, P patches, C channels, H rows, W columns.

The attack of 2020 trains a wide residual network (WRN-28-6) on the stack of |a| and |b| (6 channels) to tell
pairs that share a private image from pairs that do not, and evaluates all N² pairs. A second one has
four magnitudes (12 channels): three *prototypes* known to share an image, and a query. The weights were
published, the training program was not. Both are here, :class:`WideResidualPairs`, with the depth and
width to choose; 28 and 6 are hours on a GPU.

:class:`TowerPairs` does the same work in minutes on a processor. Each magnitude goes through one small
network to features f on a grid of patches p; a pair scores ::

    s(a, b) = Σ_p [ u·c_p + v·sqrt(c_p² + 1) ] + bias,    c_p = ⟨f_p(a), f_p(b)⟩                  (1)

with learnt u, v ≥ 0. The even part is there because the sign of a mixture is lost: a tower can
undo the sign mask within a patch, up to one sign for the patch. N passes and P matrix products replace N²
passes. With prototypes, f_p(a) is the output of a second tower on their stacked magnitudes.

Training: fresh mixtures each step (:class:`.own_release.OwnReleases`), all pairs of a batch at once, logistic
loss, AdamW with a cosine schedule over a budget of processor seconds or steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ...errors import InvalidInputError
from ..metrics import roc_auc, roc_auc_interval
from .own_release import OwnReleases
from .pair_architectures import TowerPairs, WideResidualPairs, normalised

DEFAULT_SECONDS = 240.0
BATCH_IMAGES = 24
BATCH_RELEASES = 4
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-4
FORWARD_BATCH = 256
AVERAGING = 0.99  # exponential moving average of the weights, as in the published network

PairNetwork = TowerPairs | WideResidualPairs


@dataclass(frozen=True)
class PairNetworkSettings:
    """What to train and for how long.

    Args:
        architecture: ``"towers"`` for processors, ``"wide-residual"`` as published.
        depth, width: of the wide residual network (28 and 6 as published).
        num_prototypes: 1 for the pair graph, 3 for the second graph.
        seconds: of processor time (of wall time on a GPU).
        max_steps: stop after so many steps, if sooner.
        device: ``"cpu"`` or ``"cuda"``; ``None``: a GPU if there is one.
    """

    architecture: str = "towers"
    depth: int = 10
    width: int = 1
    num_prototypes: int = 1
    seconds: float = DEFAULT_SECONDS
    max_steps: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.architecture not in ("towers", "wide-residual"):
            raise InvalidInputError(
                f"there is no architecture {self.architecture!r}", hint="use towers or wide-residual"
            )
        if not self.seconds > 0 or self.num_prototypes < 1:
            raise InvalidInputError(f"{self}", hint="some seconds, and at least one prototype")


def train_pair_network(
    releases: OwnReleases,
    settings: PairNetworkSettings,
    *,
    seed: int,
    progress: Callable[..., None] | None = None,
) -> PairNetwork:
    """Train on the attacker's own releases; ``seed`` is that of the network's start."""
    device = _device(settings.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        channels = int(releases.draw(2 * releases.num_private, 1).images.shape[1])
        network = build_network(settings, channels).to(device)
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
    network.eval()
    return network


def pair_scores(network: PairNetwork, magnitudes: torch.Tensor) -> NDArray[np.float32]:
    """(N, N) scores, higher where two encodings likelier share an image; the diagonal is −inf."""
    with torch.inference_mode():
        table = _table(network, magnitudes[:, None], magnitudes)
    table = (table + table.T) / 2
    np.fill_diagonal(table, -np.inf)
    return table


def prototype_scores(
    network: PairNetwork, prototypes: torch.Tensor, magnitudes: torch.Tensor
) -> NDArray[np.float32]:
    """(M, N) scores of N encodings against M sets of prototypes (M, num_prototypes, C, H, W)."""
    with torch.inference_mode():
        return _table(network, prototypes, magnitudes)


def held_out_auc(
    network: PairNetwork, releases: OwnReleases, *, num_prototypes: int = 1, num_images: int = 100
) -> tuple[float, tuple[float, float]]:
    """AUC on a fresh own release of ``num_images`` images, T = 4, and its 95 % interval (DeLong)."""
    with torch.inference_mode():
        prototypes, magnitudes, shared = _examples(releases, num_prototypes, num_images, BATCH_RELEASES)
        table = torch.from_numpy(_table(network, prototypes, magnitudes))
    counted = _counted(shared, num_prototypes)
    inside, outside = table[shared & counted].double().numpy(), table[~shared & counted].double().numpy()
    return roc_auc(inside, outside), roc_auc_interval(inside, outside)


def build_network(settings: PairNetworkSettings, channels: int) -> PairNetwork:
    """An untrained network of this kind."""
    if settings.architecture == "towers":
        return TowerPairs(channels, settings.num_prototypes)
    return WideResidualPairs(channels, settings.num_prototypes, depth=settings.depth, width=settings.width)


def _device(name: str | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _examples(
    releases: OwnReleases, num_prototypes: int, num_images: int, times: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prototypes (M, num_prototypes, C, H, W), magnitudes (B, C, H, W), and which share an image (M, B).

    For pairs every encoding is a prototype of itself. With more prototypes there is a set for each image,
    from a release of its own.
    """
    own = releases.draw(num_images, times + num_prototypes if num_prototypes > 1 else times)
    rows = torch.from_numpy(own.private_rows)
    if num_prototypes == 1:
        shared = (rows[:, None, :, None] == rows[None, :, None, :]).flatten(2).any(2)
        return own.magnitudes[:, None], own.magnitudes, shared
    sets, first = [], num_images * num_prototypes
    for image in range(num_images):
        holders = torch.nonzero((rows[:first] == image).any(1)).flatten()
        sets.append(own.magnitudes[holders[torch.randperm(len(holders))[:num_prototypes]]])
    shared = (rows[None, first:] == torch.arange(num_images)[:, None, None]).any(2)
    return torch.stack(sets), own.magnitudes[first:], shared


def _counted(shared: torch.Tensor, num_prototypes: int) -> torch.Tensor:
    """Pairs that count: for plain pairs one triangle, without an encoding and itself."""
    return torch.ones_like(shared).triu(1) if num_prototypes == 1 else torch.ones_like(shared)


def _loss(
    network: PairNetwork, releases: OwnReleases, num_prototypes: int, device: torch.device
) -> torch.Tensor:
    prototypes, magnitudes, shared = _examples(releases, num_prototypes, BATCH_IMAGES, BATCH_RELEASES)
    counted = _counted(shared, num_prototypes)
    left, right = torch.nonzero(counted, as_tuple=True)
    truth = shared[left, right].float().to(device)
    balance = (1 - truth.mean()) / truth.mean().clamp(min=1e-3)  # both kinds weigh the same
    prototypes, magnitudes = prototypes.to(device), magnitudes.to(device)
    if isinstance(network, TowerPairs):
        table = network.table(network.prototype_features(prototypes), network.features(magnitudes))
        scores = table[left, right]
    else:
        few = torch.randperm(len(left))[: 4 * len(magnitudes)]
        left, right, truth = left[few], right[few], truth[few]
        scores = network(prototypes[left], magnitudes[right])
    return functional.binary_cross_entropy_with_logits(scores, truth, pos_weight=balance)


def _update_average(average: dict[str, torch.Tensor], network: nn.Module, keep: float) -> None:
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.dtype.is_floating_point:
                average[name].lerp_(value, 1 - keep)
            else:
                average[name].copy_(value)


def _table(network: PairNetwork, prototypes: torch.Tensor, magnitudes: torch.Tensor) -> NDArray[np.float32]:
    device = next(network.parameters()).device
    magnitudes, prototypes = magnitudes.abs(), prototypes.abs()
    if isinstance(network, TowerPairs):
        queries = torch.cat(
            [network.features(part.to(device)) for part in magnitudes.split(FORWARD_BATCH)], 1
        )
        keys = torch.cat(
            [network.prototype_features(part.to(device)) for part in prototypes.split(FORWARD_BATCH)], 1
        )
        table = torch.cat([network.table(part, queries).cpu() for part in keys.split(FORWARD_BATCH, 1)])
        return np.asarray(table.numpy(), dtype=np.float32)
    rows = []
    for one in prototypes:
        many = one[None].expand(FORWARD_BATCH, *one.shape)
        parts = [
            network(many[: len(part)].to(device), part.to(device)) for part in magnitudes.split(FORWARD_BATCH)
        ]
        rows.append(torch.cat(parts).cpu())
    return np.asarray(torch.stack(rows).numpy(), dtype=np.float32)


__all__ = [
    "PairNetwork",
    "PairNetworkSettings",
    "held_out_auc",
    "normalised",
    "pair_scores",
    "prototype_scores",
    "train_pair_network",
]
