"""Training one model under one defence, and measuring it in the three inference modes.

Axes: n members, T releases, m sites.

Defences that change the data train on T encodings of every image, in turn; DP-SGD trains by
:mod:`instahide.dp_training`; defences that change the *update* (pruning) are trained as a federation of five
sites in this process: one local epoch, the update pruned, the mean taken. Secure aggregation changes nothing
about the sum, so its accuracy is that of the same training without it.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from ...encoded_dataset import EncodedDataset
from ...encoder import Encoder, FewPixelsWarning
from ...evaluation import EvaluationReport, evaluate
from ...images import ImageSet
from ...models import ImageClassifier, build_model
from ...training import train
from ...training_config import TrainingConfig
from ..replica import Replica, make_replica
from ..update_inversion.defences import pruned
from .data import FrontierData
from .defences import Defence

NETWORK = "small-cnn"
NUM_SITES = 5
TARGET_DELTA = 1e-3


@dataclass(frozen=True, eq=False)
class TrainedDefence:
    """A model under a defence, and what was released to train it.

    Args:
        replica: the encodings with their truth; ``None`` where none are made.
        epsilon: of one image for DP-SGD or DP-InstaHide, at ``TARGET_DELTA``; ``None`` for all others.
        cpu_seconds: of encoding and training.
    """

    model: ImageClassifier
    replica: Replica | None
    report: EvaluationReport
    epsilon: float | None
    cpu_seconds: float


def train_under(defence: Defence, data: FrontierData, config: TrainingConfig) -> TrainedDefence:
    """Encode if the defence says so, train, and evaluate on the test images."""
    _warm_up()
    started = time.process_time()
    members = data.members
    masked = defence.encoding is not None and defence.encoding.has_sign_mask
    model = build_model(
        NETWORK,
        image_shape=members.image_shape,
        num_classes=members.num_classes,
        absolute_input=masked,
    )
    replica, epsilon = None, None
    if defence.encoding is not None:
        replica = released(defence, members, data.pool)
        train(model, _in_turn(replica, len(members)), config)
    elif defence.noise_multiplier is not None:
        epsilon = _train_privately(model, members, config, defence.noise_multiplier)
    elif defence.pruned:
        _train_federated(model, members, config, defence.pruned)
    else:
        train(model, members, config)
    seconds = time.process_time() - started
    encoder = None
    if defence.encoding is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewPixelsWarning)
            encoder = Encoder(
                defence.encoding, private=members, public=data.pool if defence.uses_pool else None
            )
    if defence.encoding is not None and defence.encoding.mode == "dp":
        epsilon = _encoding_epsilon(defence, members)
    return TrainedDefence(model, replica, evaluate(model, data.test, encoder=encoder), epsilon, seconds)


@cache
def _warm_up() -> None:
    """The first step of a process loads half of torch; that is no cost of a defence."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)
    model = build_model(NETWORK, image_shape=(1, 8, 8), num_classes=2)
    train(model, ImageSet(pixels, np.arange(8) % 2), TrainingConfig(epochs=1, deterministic=True))


def released(defence: Defence, members: ImageSet, pool: ImageSet) -> Replica:
    """T encodings of every member under the defence's law."""
    assert defence.encoding is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewPixelsWarning)
        return make_replica(
            members,
            public=pool if defence.uses_pool else None,
            config=defence.encoding,
            releases=defence.releases,
        )


def _in_turn(replica: Replica, size: int) -> Callable[[], EncodedDataset]:
    """One n-row part of the release an epoch, T parts in turn."""
    encoded, place = replica.encoded, 0

    def next_part() -> EncodedDataset:
        nonlocal place
        rows = slice(place * size, (place + 1) * size)
        place = (place + 1) % replica.releases
        return EncodedDataset(
            encoded.images[rows], encoded.labels[rows], encoded.class_names, encoded.config, encoded.scheme
        )

    return next_part


def _train_privately(
    model: ImageClassifier, members: ImageSet, config: TrainingConfig, noise_multiplier: float
) -> float:
    from ...dp_training import train_with_dp

    result = train_with_dp(
        model, members, config, target_delta=TARGET_DELTA, noise_multiplier=noise_multiplier
    )
    return result.epsilon


def _encoding_epsilon(defence: Defence, members: ImageSet) -> float:
    from ...encoding_guarantee import guarantee_of_encodings

    assert defence.encoding is not None
    return guarantee_of_encodings(
        defence.encoding,
        image_shape=members.image_shape,
        num_classes=members.num_classes,
        scheme="cross" if defence.uses_pool else "inside",
        releases=defence.releases,
        target_delta=TARGET_DELTA,
    ).epsilon


def _train_federated(
    model: ImageClassifier, members: ImageSet, config: TrainingConfig, share_pruned: float
) -> None:
    """FedAvg (McMahan et al. 2017) of five sites, one local epoch a round, each update pruned."""
    from dataclasses import replace

    parts = np.array_split(np.random.default_rng(0).permutation(len(members)), NUM_SITES)
    local = replace(config, epochs=1, lr_schedule="constant")
    for _ in range(config.epochs):
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        total = {name: torch.zeros_like(value) for name, value in before.items()}
        for part in parts:
            site = copy.deepcopy(model)
            train(site, members.subset(part), local)
            update = {name: value.detach() - before[name] for name, value in site.named_parameters()}
            for name, value in pruned(update, share_pruned).items():
                total[name] += value / NUM_SITES
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.add_(total[name])
