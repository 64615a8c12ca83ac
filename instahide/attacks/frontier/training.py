"""Training one model under one defence, and measuring it in the three inference modes.

Axes: n members, T releases, m sites, R rounds.

Defences that change the data train on T encodings of every image, in turn; DP-SGD trains by
:mod:`instahide.dp_training`; defences that act on *updates* (pruning, noise for whole sites, DP-SGD whose
sum is hidden) are trained as a federation in this process (:mod:`.federated`), one local epoch a round.
Secure aggregation changes nothing about the sum, so its accuracy is that of the same training without it.

Each ε is at ``TARGET_DELTA`` and its noise is found before training. In DP-SGD it is of one image, for all
steps; where there are several sites all have the same noise, each enough for its own images. In DP-InstaHide
it is of one image and its label, for all releases; in client-level privacy of one site, for all rounds.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from torch import nn

from ...encoded_dataset import EncodedDataset
from ...encoder import Encoder, FewPixelsWarning
from ...errors import InvalidInputError
from ...evaluation import EvaluationReport, evaluate
from ...images import ImageSet
from ...models import ImageClassifier, build_model
from ...training import train
from ...training_config import TrainingConfig
from ..replica import Replica, make_replica
from ..update_inversion.defences import pruned
from .client_level import ClientLevelPlan, CoordinatorNoise, MakeClientNoise
from .data import FrontierData
from .defences import NUM_SITES, Defence
from .federated import parts_of, train_federated

NETWORK = "small-cnn"
TARGET_DELTA = 1e-5
CLIENT_CLIP = 0.25
"""Longest change of a site that client-level privacy lets through: about what a step on few images makes."""


@dataclass(frozen=True, eq=False)
class TrainedDefence:
    """A model under a defence, and what was released to train it.

    Args:
        replica: encodings under the defence's law with their truth; ``None`` where none are made.
        epsilon: at ``TARGET_DELTA``, of the defence's ``unit``; ``None`` where nothing guarantees one.
        site_noise: standard deviation, in units of the clipping norm, of the noise in what one site sends.
        cpu_seconds: of encoding and training, the search for the noise included.
    """

    model: ImageClassifier
    replica: Replica | None
    report: EvaluationReport
    epsilon: float | None
    cpu_seconds: float
    site_noise: float = 0.0


@dataclass(frozen=True)
class _Guarantee:
    epsilon: float | None = None
    site_noise: float = 0.0


def train_under(
    defence: Defence,
    data: FrontierData,
    config: TrainingConfig,
    make_site_noise: MakeClientNoise | None = None,
) -> TrainedDefence:
    """Encode if the defence says so, train, and evaluate on the test images.

    Args:
        make_site_noise: how sites share noise under secure aggregation; needed where the defence has it.

    Raises:
        InvalidInputError: it is needed and not given.
    """
    _warm_up()
    started = time.process_time()
    members, defence = data.members, fitted(defence, data.members)
    masked = defence.encoding is not None and defence.encoding.has_sign_mask
    model = build_model(
        NETWORK,
        image_shape=members.image_shape,
        num_classes=members.num_classes,
        absolute_input=masked,
    )
    replica = released(defence, members, data.pool) if defence.encoding is not None else None
    guarantee = _train(model, defence, data, config, replica, make_site_noise)
    seconds = time.process_time() - started
    encoder = None
    if defence.encoding is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewPixelsWarning)
            encoder = Encoder(
                defence.encoding, private=members, public=data.pool if defence.uses_pool else None
            )
    report = evaluate(model, data.test, encoder=encoder)
    return TrainedDefence(model, replica, report, guarantee.epsilon, seconds, guarantee.site_noise)


def fitted(defence: Defence, members: ImageSet) -> Defence:
    """``defence`` with the least noise in its encodings that keeps its epsilon on images like these."""
    if defence.noise != "encodings" or defence.encoding is None:
        return defence
    from ...encoding_guarantee import dp_config_for

    law = dp_config_for(
        target_epsilon=defence.target_epsilon,
        target_delta=TARGET_DELTA,
        image_shape=members.image_shape,
        num_classes=members.num_classes,
        scheme="cross" if defence.uses_pool else "inside",
        releases=defence.releases,
        num_mixed=defence.encoding.num_mixed,
        num_private=defence.encoding.num_private,
    )
    # Three standard deviations beside the images' range are kept; clipping costs no privacy.
    return replace(defence, encoding=replace(law, output_range=1 + 3 * law.noise_scale))


def _train(
    model: ImageClassifier,
    defence: Defence,
    data: FrontierData,
    config: TrainingConfig,
    replica: Replica | None,
    make_site_noise: MakeClientNoise | None,
) -> _Guarantee:
    members = data.members
    if defence.noise in ("coordinator", "sites"):
        return _train_for_sites(model, defence, data, config, make_site_noise)
    if defence.noise == "examples":
        train_privately = _train_sites_privately if defence.summed else _train_privately
        return train_privately(model, defence, members, config)
    if replica is not None:
        train(model, _in_turn(replica, len(members)), config)
        return _Guarantee(_encoding_epsilon(defence, members) if defence.noise else None)
    if defence.pruned:
        parts, local = parts_of(members, NUM_SITES), _one_epoch(config)
        train_federated(
            model,
            NUM_SITES,
            config.epochs,
            lambda site, index: train(site, members.subset(parts[index]), local),
            leave=lambda update: pruned(update, defence.pruned),
        )
    else:
        train(model, members, config)
    return _Guarantee()


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
    model: ImageClassifier, defence: Defence, members: ImageSet, config: TrainingConfig
) -> _Guarantee:
    from ...dp_training import train_with_dp

    result = train_with_dp(
        model, members, config, target_delta=TARGET_DELTA, target_epsilon=defence.target_epsilon
    )
    return _Guarantee(result.epsilon, result.noise_multiplier)


def _train_sites_privately(
    model: ImageClassifier, defence: Defence, members: ImageSet, config: TrainingConfig
) -> _Guarantee:
    """DP-SGD at five sites: each takes all its steps on its own images with noise enough for them alone."""
    from ...dp_training import noise_multiplier_for, train_with_dp, training_epsilon

    parts, local = parts_of(members, NUM_SITES), _one_epoch(config)
    q = min(1.0, config.batch_size / min(map(len, parts)))
    steps, weights = math.ceil(1 / q - 1e-9) * config.epochs, _num_weights(model)
    multiplier = noise_multiplier_for(defence.target_epsilon, TARGET_DELTA, q, steps, num_weights=weights)

    def train_site(site: nn.Module, index: int) -> None:
        train_with_dp(
            site,
            members.subset(parts[index]),
            local,
            target_delta=TARGET_DELTA,
            noise_multiplier=multiplier,
            sample_rate=q,
        )

    train_federated(model, NUM_SITES, config.epochs, train_site)
    epsilon = training_epsilon(multiplier, q, steps, TARGET_DELTA, num_weights=weights)
    return _Guarantee(epsilon, multiplier)


def _train_for_sites(
    model: ImageClassifier,
    defence: Defence,
    data: FrontierData,
    config: TrainingConfig,
    make_site_noise: MakeClientNoise | None,
) -> _Guarantee:
    """Client-level privacy: noise in the mean of the sites' clipped changes, from one side or the other."""
    make = CoordinatorNoise if defence.noise == "coordinator" else make_site_noise
    if make is None:
        raise InvalidInputError(
            f"{defence.name}: nobody says how sites share their noise",
            hint="give make_site_noise",
        )
    members, local = data.members, _one_epoch(config)
    parts = parts_of(members, defence.num_sites(len(members)))
    noise = make(
        ClientLevelPlan(
            num_sites=len(parts),
            num_weights=_num_weights(model),
            num_rounds=config.epochs,
            clip_norm=CLIENT_CLIP,
            target_epsilon=defence.target_epsilon,
            target_delta=TARGET_DELTA,
        )
    )
    sets: list[ImageSet | Callable[[], EncodedDataset]] = [members.subset(part) for part in parts]
    if defence.encoding is not None:  # each site mixes its own images only
        sets = [_in_turn(released(defence, members.subset(part), data.pool), len(part)) for part in parts]
    train_federated(
        model,
        len(parts),
        config.epochs,
        lambda site, index: train(site, sets[index], local),
        mean=noise.mean,
    )
    return _Guarantee(noise.epsilon, noise.share)


def _one_epoch(config: TrainingConfig) -> TrainingConfig:
    return replace(config, epochs=1, lr_schedule="constant")


def _num_weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


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
