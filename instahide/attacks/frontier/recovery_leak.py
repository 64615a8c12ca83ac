"""How well private images are rebuilt from the encodings that a defence releases.

Axes: n private images, T releases of each, k sources.

Every defence is asked at the same tier: *decode*, in which the attacker is told which private images are in
each encoding, with which coefficients, and holds the public pool. It is an upper bound on what an
attacker without that knowledge rebuilds, and it is the one tier that exists for every number of private
images. ``instahide attack run recovery --tier label-only`` and ``attack curve`` measure the weaker attackers.
"""

from __future__ import annotations

import numpy as np

from ...encoder_config import EncoderConfig
from ...images import ImageSet
from ...mixing import to_unit_range
from ..cost import Cost
from ..image_metrics import score_recovery, ssim_matrix
from ..recovery.decode import decode_images
from ..recovery.decode_view import DecodeView
from ..recovery.sign_recovery import SignNetwork, train_sign_network
from ..replica import make_replica
from .data import FrontierData
from .defences import Defence
from .leaks import Leak
from .training import TrainedDefence

NUM_IMAGES = 60
TRAINING_SECONDS = 8.0


def recovery_of_encodings(defence: Defence, trained: TrainedDefence, data: FrontierData) -> Leak | None:
    """Mean SSIM of 60 members, decoded from T encodings of each."""
    law = defence.encoding
    if law is None or not defence.encodings_leave:
        return None
    members = data.members.subset(np.arange(min(NUM_IMAGES, len(data.members))))
    replica = make_replica(
        members, public=data.pool if defence.uses_pool else None, config=law, releases=defence.releases
    )
    similar = ImageSet(data.similar.images)
    with Cost() as cost:
        view = DecodeView(
            replica.encoded.images * law.output_range,
            replica.truth.private_rows,
            replica.truth.private_coefficients,
            len(members),
            similar,
            _seen_law(replica.encoded.config),
            replica.encoded.scheme,
            data.pool if defence.uses_pool else None,
        )
        decoded = decode_images(view, network=_network(view), seed=0)
    originals = to_unit_range(members.images).numpy()
    score = score_recovery(decoded.images.clamp(-1, 1).numpy(), originals)
    mean = to_unit_range(similar.images).mean(0, keepdim=True).numpy()
    chance = float(ssim_matrix(originals, mean).mean())
    return Leak(
        "SSIM",
        score.mean_ssim,
        score.mean_ssim_interval,
        chance,
        "recovery, tier decode, pool known" if defence.uses_pool else "recovery, tier decode",
        cost.cpu_seconds,
        {"identification_rate": score.identification_rate},
    )


def _seen_law(config: EncoderConfig) -> EncoderConfig:
    """The law as the decoder takes it: DP-InstaHide is mixup with noise it does not model."""
    if config.mode != "dp":
        return config
    return EncoderConfig(
        num_mixed=config.num_mixed,
        num_private=config.num_private,
        mode="mixup",
        coefficient_law=config.coefficient_law,
        max_coefficient=config.max_coefficient,
        min_private_sum=config.min_private_sum,
    )


def _network(view: DecodeView) -> SignNetwork | None:
    if not view.config.has_sign_mask:
        return None
    return train_sign_network(
        view.public_images,
        view.config,
        scheme=view.scheme,
        public_pool=view.public_pool,
        cpu_seconds=TRAINING_SECONDS,
    )
