"""What a site, or a protocol, may do to an update before the server sees it.

Axes: D weights, m sites.

* **Pruning** keeps the largest share 1 − p of each tensor (Aji & Heafield 2017; tried by Zhu et al. 2019).
* **Clip and noise**: shorten the update to C, add N(0, (z·C)²) to each value. This is the mechanism of
  DP-FedAvg for one release, *not* a statement of privacy: no accountant is run here.
* **Secure aggregation**: the server gets only the mean over m sites.

The noise comes from the operating system: it is the defender's secret, not a choice of the attacker.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

import torch

from ...errors import InvalidInputError
from .view import Defence, Tensors, UpdateView


def defend(view: UpdateView, defence: Defence) -> UpdateView:
    """``view`` of a server facing one site that applies ``defence``: clip, then noise, then prune."""
    observed = dict(view.observed)
    if defence.clip is not None:
        observed = clipped(observed, defence.clip)
    if defence.noise > 0:
        observed = with_noise(observed, defence.noise)
    if defence.prune > 0:
        observed = pruned(observed, defence.prune)
    return replace(view, observed=observed, defence=replace(defence, num_sites=view.defence.num_sites))


def pruned(update: Tensors, share: float) -> Tensors:
    """The smallest ``share`` of every tensor's values set to zero; at least one value stays."""
    kept = {}
    for name, value in update.items():
        drop = min(round(share * value.numel()), value.numel() - 1)
        if drop == 0:
            kept[name] = value.clone()
            continue
        limit = value.abs().flatten().kthvalue(drop).values
        kept[name] = torch.where(value.abs() > limit, value, torch.zeros_like(value))
    return kept


def clipped(update: Tensors, bound: float) -> Tensors:
    """The whole update shortened to length ``bound`` if it is longer."""
    norm = float(torch.stack([value.square().sum() for value in update.values()]).sum().sqrt())
    shrink = min(1.0, bound / max(norm, 1e-30))
    return {name: value * shrink for name, value in update.items()}


def with_noise(update: Tensors, standard_deviation: float) -> Tensors:
    """Fresh Gaussian noise on every value."""
    generator = torch.Generator().manual_seed(secrets.randbits(63))
    return {
        name: value + standard_deviation * torch.randn(value.shape, generator=generator)
        for name, value in update.items()
    }


def securely_aggregated(views: Sequence[UpdateView]) -> UpdateView:
    """What secure aggregation leaves of m sites with equally many images: their mean.

    Raises:
        InvalidInputError: no view, or sites that differ in plan or size.
    """
    if not views:
        raise InvalidInputError("there are no updates to aggregate", hint="give at least one view")
    first, m = views[0], len(views)
    if any(view.training != first.training or view.kind != first.kind for view in views):
        raise InvalidInputError("the sites differ in plan or size", hint="aggregate sites of equal size")
    mean = {name: torch.stack([view.observed[name] for view in views]).mean(0) for name in first.observed}
    labels = [view.labels for view in views if view.labels is not None]
    size = first.training.batch_size if first.kind == "update" else m * first.num_images
    return replace(
        first,
        observed=mean,
        training=replace(first.training, num_images=m * first.num_images, batch_size=size),
        labels=torch.cat(labels) if len(labels) == m else None,
        defence=replace(first.defence, num_sites=m),
    )
