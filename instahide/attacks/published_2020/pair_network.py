"""Do two encodings share a private image? A network the attacker trains on mixtures of public images.

Axes: N encodings, B rows of a batch, M sets of prototypes, C channels, H rows, W columns, d = C·H·W values.

The attack of 2020 trains a wide residual network (WRN-28-6) on the stack of |a| and |b| (6 channels) to tell
pairs that share a private image from pairs that do not, and evaluates all N² pairs. A second one has
four magnitudes (12 channels): three *prototypes* known to share an image, and a query. The weights were
published, the training program was not. Here it is, for :class:`WideResidualPairs` with the depth and width
to choose; 28 and 6 are hours on a GPU.

:class:`UnmaskedPairs` does the same work in minutes on a processor. What makes pairs hard to compare is the
lost sign: ⟨z, z'⟩ of two mixtures shows a common image well, ⟨|z|, |z'|⟩ hardly. So a network is trained to
undo the sign mask (:mod:`..recovery.sign_recovery`; one sign for the whole encoding stays free), and
pairs are compared in whitened coordinates, where neighbouring pixels do not repeat each other::

    y = (Σ + εI)^(−1/2) ẑ / |·|,     c = ⟨y_a, y_b⟩                                             (1)
    s(a, b) = log cosh(μ·c / s²)                                                                (2)

(2) is, but for a constant, the log likelihood ratio of c ~ N(±μ, s²) against N(0, s²); μ and s² are
moments of own mixtures. Prototypes are turned to agree and summed. N passes and one matrix product replace
N² passes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import InvalidInputError
from ..metrics import roc_auc, roc_auc_interval
from .own_release import OwnReleases
from .pair_architectures import UnmaskedPairs, WideResidualPairs

DEFAULT_SECONDS = 240.0
BATCH_RELEASES = 4
FORWARD_BATCH = 256

ARCHITECTURES = ("unmasked", "wide-residual")

PairNetwork = UnmaskedPairs | WideResidualPairs


@dataclass(frozen=True)
class PairNetworkSettings:
    """What to train and for how long.

    Args:
        architecture: ``"unmasked"`` for processors, ``"wide-residual"`` as published.
        depth, width: of the wide residual network (28 and 6 as published).
        num_prototypes: 1 for the pair graph, 3 for the second graph.
        seconds: of processor time (of wall time on a GPU).
        max_steps: stop after so many steps, if sooner.
        device: ``"cpu"`` or ``"cuda"``; ``None``: a GPU if there is one.
    """

    architecture: str = "unmasked"
    depth: int = 10
    width: int = 1
    num_prototypes: int = 1
    seconds: float = DEFAULT_SECONDS
    max_steps: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InvalidInputError(
                f"there is no architecture {self.architecture!r}",
                hint=f"use one of {', '.join(ARCHITECTURES)}",
            )
        if not self.seconds > 0 or self.num_prototypes < 1:
            raise InvalidInputError(f"{self}", hint="some seconds, and at least one prototype")


def build_network(settings: PairNetworkSettings, shape: tuple[int, int, int]) -> PairNetwork:
    """An untrained network for images of ``shape`` (C, H, W)."""
    if settings.architecture == "unmasked":
        return UnmaskedPairs(shape, settings.num_prototypes)
    return WideResidualPairs(shape[0], settings.num_prototypes, depth=settings.depth, width=settings.width)


def for_prototypes(network: UnmaskedPairs, num_prototypes: int) -> UnmaskedPairs:
    """The same network for sets of another size; nothing has to be trained again."""
    other = copy.copy(network)  # shares every weight
    other.num_prototypes = num_prototypes
    return other


def pair_scores(network: PairNetwork, magnitudes: torch.Tensor) -> NDArray[np.float32]:
    """(N, N) scores of both orders summed, higher where two likelier share an image; diagonal −inf."""
    with torch.inference_mode():
        table = _table(network, magnitudes[:, None], magnitudes)
    table += table.T.copy()
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
    """AUC on a fresh own release of ``num_images`` images, T = 4.

    The interval is DeLong's for independent pairs; pairs with an encoding in common are not, so it is narrow.
    """
    with torch.inference_mode():
        prototypes, magnitudes, shared = examples(releases, num_prototypes, num_images, BATCH_RELEASES)
        table = torch.from_numpy(_table(network, prototypes, magnitudes))
    counted = counted_pairs(shared, num_prototypes)
    inside, outside = table[shared & counted].double().numpy(), table[~shared & counted].double().numpy()
    return roc_auc(inside, outside), roc_auc_interval(inside, outside)


def examples(
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


def counted_pairs(shared: torch.Tensor, num_prototypes: int) -> torch.Tensor:
    """Pairs that count: for plain pairs one triangle, without an encoding and itself."""
    return torch.ones_like(shared).triu(1) if num_prototypes == 1 else torch.ones_like(shared)


def _table(network: PairNetwork, prototypes: torch.Tensor, magnitudes: torch.Tensor) -> NDArray[np.float32]:
    device = next(network.parameters()).device
    magnitudes, prototypes = magnitudes.abs(), prototypes.abs()
    if isinstance(network, UnmaskedPairs):
        queries = torch.cat([network.features(part.to(device)) for part in _batches(magnitudes)])
        keys = torch.cat([network.prototype_features(part.to(device)) for part in _batches(prototypes)])
        table = torch.cat([network.table(part, queries).cpu() for part in _batches(keys)])
        return np.asarray(table.numpy(), dtype=np.float32)
    rows = []
    for one in prototypes:
        many = one[None].expand(FORWARD_BATCH, *one.shape)
        parts = [network(many[: len(part)].to(device), part.to(device)) for part in _batches(magnitudes)]
        rows.append(torch.cat(parts).cpu())
    return np.asarray(torch.stack(rows).numpy(), dtype=np.float32)


def _batches(rows: torch.Tensor) -> list[torch.Tensor]:
    return [rows[first : first + FORWARD_BATCH] for first in range(0, len(rows), FORWARD_BATCH)]
