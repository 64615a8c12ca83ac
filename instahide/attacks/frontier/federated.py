"""A federation in this process: rounds of local training, and what becomes of the sites' changes.

Axes: m sites, R rounds, D weights.

FedAvg (McMahan et al. 2017): in each round every site starts from the common weights, trains locally, and its
change leaves; the mean of the changes moves the weights. A defence acts on the local training, on a change
before it leaves, or on the mean.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ...images import ImageSet

Tensors = dict[str, torch.Tensor]
Mean = Callable[[NDArray[np.floating[Any]]], NDArray[np.floating[Any]]]


def parts_of(members: ImageSet, num_sites: int) -> list[NDArray[np.int64]]:
    """The rows of each site: a random split into equal parts, always the same one."""
    return np.array_split(np.random.default_rng(0).permutation(len(members)), num_sites)


def train_federated(
    model: nn.Module,
    num_sites: int,
    num_rounds: int,
    train_site: Callable[[nn.Module, int], object],
    *,
    leave: Callable[[Tensors], Tensors] | None = None,
    mean: Mean | None = None,
) -> None:
    """Train ``model`` in place.

    Args:
        train_site: trains the model it is given as site number i does in one round.
        leave: what a site does to its change, by parameter, before it leaves.
        mean: (D,) of the changes (m, D); the plain mean by default.
    """
    for _ in range(num_rounds):
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        changes = []
        for site in range(num_sites):
            local = copy.deepcopy(model)
            train_site(local, site)
            change = {name: value.detach() - before[name] for name, value in local.named_parameters()}
            changes.append(parameters_to_vector(list((leave(change) if leave else change).values())).numpy())
        step = (mean or _plain_mean)(np.stack(changes))
        moved = parameters_to_vector(list(before.values())).double() + torch.from_numpy(np.asarray(step))
        vector_to_parameters(moved.float(), model.parameters())
    model.eval()


def _plain_mean(changes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    return np.asarray(changes.mean(axis=0, dtype=np.float64))
